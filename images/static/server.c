/* A tiny static HTTP/1.1 server: one thread, epoll, one fixed reply, "hello" or REPLY_BYTES long.
 *
 * It is the function behind the benchmarks, so it does what a proxy needs of a backend and nothing
 * else: keep-alive, pipelining, request bodies by Content-Length or chunked (read and dropped),
 * HTTP/1.0 and Connection: close. It listens on 0.0.0.0 at FC_CUSTOM_LISTEN_PORT or PORT (default
 * 9000) and says so on stdout. A head larger than the buffer, or nonsense, closes the connection.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define HEAD_BYTES 16384
#define OUT_BYTES 8192
#define MOST_REPLY_BYTES (16 << 20)
#define EVENTS 256

struct reply {
    char *bytes;
    size_t size;
};

static struct reply reply, last_reply; /* the second one says that it is the last */
static size_t out_bytes = OUT_BYTES;

enum body { NO_BODY, COUNTED, CHUNK_SIZE, CHUNK_DATA, CHUNK_TRAILER };

struct connection {
    int fd;
    int closing; /* the peer wants no more replies than this one */
    int last;    /* that one is in `out` or sent */
    int waiting; /* for the socket to take more bytes */
    enum body body;
    unsigned long long left; /* bytes of body, or of chunk and its CRLF, still to come */
    size_t used, out_from, out_to;
    char in[HEAD_BYTES], out[];
};

static int epoll_fd;

static void stop(int number) {
    (void)number;
    _exit(0);
}

static void drop(struct connection *c) {
    close(c->fd);
    free(c);
}

/* Send what is in `out`; returns 0, or -1 when the peer is gone. */
static int flush(struct connection *c) {
    while (c->out_from < c->out_to) {
        ssize_t n = send(c->fd, c->out + c->out_from, c->out_to - c->out_from, MSG_NOSIGNAL);
        if (n > 0) {
            c->out_from += (size_t)n;
        } else if (n < 0 && errno == EINTR) {
            continue;
        } else if (n < 0 && errno == EAGAIN) {
            c->waiting = 1;
            return 0;
        } else {
            return -1;
        }
    }
    c->out_from = c->out_to = 0;
    c->waiting = 0;
    return 0;
}

static void answer(struct connection *c) {
    const struct reply *found = c->closing ? &last_reply : &reply;
    memcpy(c->out + c->out_to, found->bytes, found->size);
    c->out_to += found->size;
    c->last = c->closing;
}

static int has_token(const char *value, const char *end, const char *token) {
    size_t size = strlen(token);
    for (; value + size <= end; value++)
        if (!strncasecmp(value, token, size)) return 1;
    return 0;
}

/* Read the head in in[0..size): how its body is framed. Returns 0, or -1 for nonsense. */
static int read_head(struct connection *c, size_t size) {
    const char *at = c->in, *end = c->in + size;
    const char *line_end = memmem(at, size, "\r\n", 2);
    if (!line_end || line_end - at < 14) return -1;
    if (memcmp(line_end - 9, " HTTP/1.", 8)) return -1;
    c->closing = line_end[-1] == '0';
    c->body = NO_BODY;
    for (at = line_end + 2; at < end; at = line_end + 2) {
        line_end = memmem(at, (size_t)(end - at), "\r\n", 2);
        if (!line_end || line_end == at) break;
        if (!strncasecmp(at, "content-length:", 15)) {
            char *after;
            c->left = strtoull(at + 15, &after, 10);
            if (after != line_end) return -1;
            if (c->left && c->body == NO_BODY) c->body = COUNTED;
        } else if (!strncasecmp(at, "transfer-encoding:", 18)) {
            if (!has_token(at + 18, line_end, "chunked")) return -1;
            c->body = CHUNK_SIZE;
        } else if (!strncasecmp(at, "connection:", 11)) {
            if (has_token(at + 11, line_end, "close")) c->closing = 1;
            if (has_token(at + 11, line_end, "keep-alive")) c->closing = 0;
        }
    }
    return 0;
}

/* Take one step in a chunked body; returns bytes eaten, 0 when more is needed, -1 for nonsense. */
static ssize_t eat_chunk(struct connection *c, const char *at, size_t size) {
    if (c->body == CHUNK_DATA) {
        size_t n = size < c->left ? size : (size_t)c->left;
        c->left -= n;
        if (!c->left) c->body = CHUNK_SIZE;
        return (ssize_t)n;
    }
    const char *line_end = memmem(at, size, "\r\n", 2);
    if (!line_end) return size > 1024 ? -1 : 0;
    if (c->body == CHUNK_TRAILER) {
        if (line_end == at) c->body = NO_BODY;
    } else {
        char *after;
        c->left = strtoull(at, &after, 16);
        if (after == at || c->left > (1ULL << 40)) return -1;
        c->body = c->left ? CHUNK_DATA : CHUNK_TRAILER;
        if (c->left) c->left += 2;
    }
    return line_end + 2 - at;
}

/* Eat what was read, answering each whole request. Returns 0, or -1 to drop the connection. */
static int advance(struct connection *c) {
    size_t at = 0;
    int wants_more = 0;
    while (!wants_more && !c->waiting && !c->last) {
        size_t size = c->used - at;
        if (c->body == NO_BODY) {
            const char *end = size ? memmem(c->in + at, size, "\r\n\r\n", 4) : NULL;
            if (!end) break;
            size_t head = (size_t)(end + 4 - (c->in + at));
            if (at) memmove(c->in, c->in + at, size);
            c->used = size;
            if (read_head(c, head)) return -1;
            at = head;
        } else if (c->body == COUNTED) {
            size_t n = size < c->left ? size : (size_t)c->left;
            c->left -= n;
            at += n;
            if (c->left) wants_more = 1;
            else c->body = NO_BODY;
        } else {
            ssize_t n = eat_chunk(c, c->in + at, size);
            if (n < 0) return -1;
            at += (size_t)n;
            if (!n) wants_more = 1;
        }
        if (!wants_more && c->body == NO_BODY) {
            answer(c);
            if (out_bytes - c->out_to < last_reply.size && flush(c)) return -1;
        }
    }
    memmove(c->in, c->in + at, c->used - at);
    c->used -= at;
    if (c->out_to && !c->waiting && flush(c)) return -1;
    if (c->last && !c->waiting) return -1;
    return c->used == HEAD_BYTES && !c->waiting ? -1 : 0;
}

static void watch(struct connection *c, int op) {
    struct epoll_event event = {.events = c->waiting ? EPOLLOUT : EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll_fd, op, c->fd, &event);
}

static void serve(struct connection *c, unsigned events) {
    int was_waiting = c->waiting, failed;
    if (was_waiting) {
        failed = flush(c) || (!c->waiting && advance(c));
    } else {
        ssize_t n = recv(c->fd, c->in + c->used, HEAD_BYTES - c->used, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR) && !(events & EPOLLERR)) return;
        if (n > 0) c->used += (size_t)n;
        failed = n <= 0 || advance(c);
    }
    if (failed) drop(c);
    else if (c->waiting != was_waiting) watch(c, EPOLL_CTL_MOD);
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *c = malloc(sizeof *c + out_bytes);
        if (!c) {
            close(fd);
            return;
        }
        c->fd = fd;
        c->closing = c->last = c->waiting = 0;
        c->body = NO_BODY;
        c->left = c->used = c->out_from = c->out_to = 0;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        watch(c, EPOLL_CTL_ADD);
    }
}

static int listen_on(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096)) {
        perror("listen");
        exit(1);
    }
    return fd;
}

/* A reply with a body of `size` bytes, "hello" and a newline for 0. */
static struct reply make_reply(size_t size, const char *more) {
    char head[256];
    const char *body = "hello\n";
    size_t body_bytes = size ? size : strlen(body);
    int n = snprintf(head, sizeof head,
                     "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n%s\r\n",
                     body_bytes, more);
    struct reply made = {malloc((size_t)n + body_bytes), (size_t)n + body_bytes};
    if (!made.bytes) exit(1);
    memcpy(made.bytes, head, (size_t)n);
    if (size) memset(made.bytes + n, 'x', size);
    else memcpy(made.bytes + n, body, body_bytes);
    return made;
}

static void make_replies(void) {
    const char *wanted = getenv("REPLY_BYTES");
    size_t size = wanted ? strtoul(wanted, NULL, 10) : 0;
    if (size > MOST_REPLY_BYTES) size = MOST_REPLY_BYTES;
    reply = make_reply(size, "");
    last_reply = make_reply(size, "Connection: close\r\n");
    if (out_bytes < 2 * last_reply.size) out_bytes = 2 * last_reply.size;
}

int main(void) {
    const char *named = getenv("FC_CUSTOM_LISTEN_PORT");
    if (!named) named = getenv("PORT");
    int port = named ? atoi(named) : 9000;
    struct sigaction action = {.sa_handler = stop}; /* as PID 1 the default action is to ignore */
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    make_replies();
    int listener = listen_on(port);
    printf("Listening on port %d\n", port);
    fflush(stdout);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event events[EVENTS], listening = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &listening);
    for (;;) {
        int n = epoll_wait(epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr) serve(events[i].data.ptr, events[i].events);
            else accept_all(listener);
        }
    }
}
