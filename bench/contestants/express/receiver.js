// Express + BullMQ on Redis, as BullMQ's guides show it: verifies, leaves repeats out by the job's id, and enqueues.
// What it does not keep: what Redis has not saved yet when it is killed; one effect of a repeat that comes a day later;
// and calls, of which there is only the set of those that are active.
import cluster from "node:cluster";
import { createHmac, timingSafeEqual } from "node:crypto";
import { Queue } from "bullmq";
import express from "express";
import { Redis } from "ioredis";

const TOLERANCE = 300;
const { PORT, REDIS_URL, WEB_CONCURRENCY, WEBHOOK_SECRET } = process.env;
const OPTIONS = {
  attempts: 18, // for more than a day
  backoff: { type: "exponential", delay: 1000 },
  removeOnComplete: { age: 24 * 3600 }, // until then a repeat is known
};

function verify(request, answer, body) {
  const timestamp = request.get("X-Webhook-Timestamp") ?? "";
  const signature = Buffer.from((request.get("X-Webhook-Signature") ?? "").replace("sha256=", ""));
  const signed = Buffer.concat([Buffer.from(`${timestamp}.`), body]);
  const expected = Buffer.from(createHmac("sha256", WEBHOOK_SECRET).update(signed).digest("hex"));
  const right = signature.length === expected.length && timingSafeEqual(signature, expected);
  const fresh = Math.abs(Date.now() / 1000 - Number(timestamp)) <= TOLERANCE;
  if (!right || !fresh) throw Object.assign(new Error("wrong signature, or stale"), { status: 401 });
}

function listen() {
  const queue = new Queue("updates", { connection: new Redis(REDIS_URL, { enableOfflineQueue: false }) });
  queue.on("error", (error) => console.error(error.message));
  const app = express().disable("x-powered-by").disable("etag").use(express.json({ limit: "2mb", verify }));
  app.post("/webhooks/status-update", async (request, answer) => {
    const { type, timestamp, call, phone_number, customer, error, assistant } = request.body?.message ?? {};
    const texts = [timestamp, call?.id, call?.status].every((text) => text && typeof text === "string");
    if (type !== "status-update" || !texts) return answer.status(422).send("not a status update");
    const message = { timestamp, call, phone_number, customer, error, metadata: assistant?.metadata };
    const jobId = [call.id, call.status].map(encodeURIComponent).join("|");
    try {
      await queue.add("update", message, { ...OPTIONS, jobId });
    } catch {
      return answer.status(503).set("Retry-After", "30").send("could not be kept, send it again");
    }
    answer.type("text").send("OK");
  });
  app.listen(PORT, "127.0.0.1");
}

if (!cluster.isPrimary) listen();
else for (let number = 0; number < WEB_CONCURRENCY; number++) cluster.fork();
