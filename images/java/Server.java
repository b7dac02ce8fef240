import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.Executors;

/** A small server of the JDK's own parts: what was posted in upper case, and what the JVM sized itself by. */
public final class Server {
  public static void main(String[] arguments) throws IOException {
    int port = Integer.parseInt(System.getenv().getOrDefault("FC_CUSTOM_LISTEN_PORT", "9000"));
    HttpServer server = HttpServer.create(new InetSocketAddress("0.0.0.0", port), 0);
    server.createContext("/", Server::upper);
    server.createContext("/limits", Server::limits);
    server.setExecutor(Executors.newFixedThreadPool(4));
    Runtime.getRuntime().addShutdownHook(new Thread(() -> System.out.println("shutting down")));
    server.start();
    System.out.println("listening on " + port);
  }

  private static void upper(HttpExchange call) throws IOException {
    String body = new String(call.getRequestBody().readAllBytes(), StandardCharsets.UTF_8);
    System.out.println(call.getRequestMethod() + " " + call.getRequestURI());
    call.getResponseHeaders().set("X-Served-By", "java");
    answer(call, 201, body.toUpperCase());
  }

  private static void limits(HttpExchange call) throws IOException {
    Runtime runtime = Runtime.getRuntime();
    answer(call, 200, String.format("{\"heap\": %d, \"processors\": %d}",
        runtime.maxMemory(), runtime.availableProcessors()));
  }

  private static void answer(HttpExchange call, int status, String text) throws IOException {
    byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
    call.sendResponseHeaders(status, bytes.length);
    call.getResponseBody().write(bytes);
    call.close();
  }
}
