// An Express application as people write them: routes, a JSON body, an orderly end at SIGTERM.
const os = require("node:os");
const v8 = require("node:v8");
const express = require("express");

const app = express();
app.use(express.json());
app.get("/", (request, reply) => reply.send(`hello from express, ${request.query.name}`));
app.post("/sum", (request, reply) => {
  console.log("summing", request.body.numbers.length);
  reply.status(201).set("X-Served-By", "express");
  reply.json({ sum: request.body.numbers.reduce((a, b) => a + b, 0) });
});
app.get("/limits", (request, reply) =>
  reply.json({
    constrained: process.constrainedMemory(),
    heap: v8.getHeapStatistics().heap_size_limit,
    total: os.totalmem(),
    uid: process.getuid(),
    home: os.homedir(),
    uv: process.versions.uv,
  }),
);

const server = app.listen(process.env.PORT, () => console.log("listening on", process.env.PORT));
process.on("SIGTERM", () => {
  console.log("closing");
  server.close(() => {
    console.log("closed");
    process.exit(0);
  });
});
