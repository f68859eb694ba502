// Express + BullMQ on Redis, the receiver: verifies, leaves repeats out by the job's id, and enqueues. Two processes, and one that
// hands them their connections.
import cluster from "node:cluster";
import { createHmac, timingSafeEqual } from "node:crypto";
import { Queue } from "bullmq";
import express from "express";
import { Redis } from "ioredis";

const TOLERANCE = 300;
const { PORT, REDIS_URL, WEBHOOK_SECRET } = process.env;
const OPTIONS = {
  attempts: 18, // for more than a day
  backoff: { type: "exponential", delay: 1000 },
  removeOnComplete: { age: 24 * 3600 }, // until then a repeat is known
};

function verified(request) {
  const timestamp = request.get("X-Webhook-Timestamp") ?? "";
  const given = Buffer.from((request.get("X-Webhook-Signature") ?? "").replace("sha256=", ""));
  const signed = Buffer.concat([Buffer.from(`${timestamp}.`), request.body]);
  const expected = Buffer.from(createHmac("sha256", WEBHOOK_SECRET).update(signed).digest("hex"));
  if (given.length !== expected.length || !timingSafeEqual(given, expected)) return false;
  return Math.abs(Date.now() / 1000 - Number(timestamp)) <= TOLERANCE;
}

function loaded(body) {
  try {
    const { message } = JSON.parse(body);
    const texts = [message.timestamp, message.call.id, message.call.status];
    return message.type === "status-update" && texts.every((text) => text && typeof text === "string") ? message : null;
  } catch {
    return null;
  }
}

function listen() {
  const queue = new Queue("updates", { connection: new Redis(REDIS_URL, { enableOfflineQueue: false }) });
  queue.on("error", (error) => console.error(error.message));
  const app = express().disable("x-powered-by").disable("etag");
  app.post("/webhooks/status-update", express.raw({ type: "application/json", limit: "1mb" }), async (request, answer) => {
    if (!verified(request)) return answer.status(401).send("wrong signature");
    const message = loaded(request.body);
    if (!message) return answer.status(422).send("not a status update");
    const { type, timestamp, call, phone_number, customer, error, end_reason } = message;
    const jobId = [call.id, call.status].map(encodeURIComponent).join("|");
    const kept = { type, timestamp, call, phone_number, customer, error, end_reason };
    kept.assistant = { metadata: message.assistant?.metadata };
    try {
      await queue.add("update", kept, { ...OPTIONS, jobId });
    } catch {
      return answer.status(503).set("Retry-After", "30").send("could not be kept, send it again");
    }
    answer.type("text").send("OK");
  });
  app.listen(PORT, "127.0.0.1");
}

if (cluster.isPrimary) [1, 2].forEach(() => cluster.fork());
else listen();
