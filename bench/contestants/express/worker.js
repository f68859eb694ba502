// Express + BullMQ on Redis: the worker logs, tracks and posts to the CRM.
import { Worker } from "bullmq";
import { Redis } from "ioredis";

const CRM_TIMEOUT = 3000;
const CONCURRENCY = 50; // as the guide on concurrency has it
const { CRM_WEBHOOK_URL, REDIS_URL } = process.env;
const redis = new Redis(REDIS_URL, { maxRetriesPerRequest: null });

function logEvent({ call, phone_number, customer, error }) {
  const line = { event: "update", call_id: call.id, status: call.status, type: call.type };
  Object.assign(line, { line: phone_number?.number, customer: customer?.number, error });
  console.log(JSON.stringify(line).replace(/(\+\d{3})\d+(\d{2})/g, "$1***$2"));
}

async function updateCrm({ timestamp, call, phone_number, customer, error, metadata }) {
  const record = { type: "call", phone: customer?.number, status: call.status, timestamp, call_id: call.id };
  Object.assign(record, { direction: call.type?.split("_")[0], line: phone_number?.number, error, metadata });
  const key = [call.id, call.status].map(encodeURIComponent).join(":");
  const answer = await fetch(CRM_WEBHOOK_URL, {
    method: "POST",
    headers: { "Content-Type": "application/json", "Idempotency-Key": key },
    body: JSON.stringify(record),
    signal: AbortSignal.timeout(CRM_TIMEOUT),
  });
  await answer.arrayBuffer(); // frees the connection
  if (!answer.ok) throw new Error(`answered ${answer.status}`);
}

async function handle({ data, attemptsMade }) {
  if (attemptsMade === 0) logEvent(data);
  const { id, status } = data.call;
  await (status === "in-progress" ? redis.sadd("active_calls", id) : redis.srem("active_calls", id));
  await updateCrm(data);
}

const worker = new Worker("updates", handle, { connection: redis, concurrency: CONCURRENCY });
worker.on("error", (error) => console.error(error.message));
