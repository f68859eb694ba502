// Express + BullMQ on Redis, the worker: logs, tracks and posts to the CRM. Two processes.
import cluster from "node:cluster";
import { Worker } from "bullmq";
import { Redis } from "ioredis";

const OUTBOUND_TIMEOUT = 3000;
const CONCURRENCY = 50; // as the guide on concurrency has it
const { CRM_WEBHOOK_URL, REDIS_URL } = process.env;

function logEvent({ call, phone_number, customer, error, end_reason }) {
  const line = { time: new Date().toISOString(), level: "INFO", event: "update", call_id: call.id, status: call.status };
  Object.assign(line, { type: call.type, line: phone_number?.number, customer: customer?.number, error, end_reason });
  console.log(JSON.stringify(line).replace(/(\+\d{3})\d+(\d{2})/g, "$1***$2"));
}

async function trackCall(redis, { id, status }) {
  await (status === "in-progress" ? redis.sadd("active_calls", id) : redis.srem("active_calls", id));
}

async function updateCrm({ timestamp, call, phone_number, customer, error, assistant }) {
  const answer = await fetch(CRM_WEBHOOK_URL, {
    method: "POST",
    headers: {
      "Content-Type": "application/json",
      "Idempotency-Key": `${encodeURIComponent(call.id)}:${encodeURIComponent(call.status)}`,
    },
    body: JSON.stringify({
      type: "call",
      phone: customer?.number ?? null,
      status: call.status,
      timestamp,
      call_id: call.id,
      direction: call.type?.split("_")[0] ?? null,
      line: phone_number?.number ?? null,
      error: error ?? null,
      metadata: assistant.metadata ?? null,
    }),
    signal: AbortSignal.timeout(OUTBOUND_TIMEOUT),
  });
  await answer.arrayBuffer(); // frees the connection
  if (!answer.ok) throw new Error(`answered ${answer.status}`);
}

function work() {
  const redis = new Redis(REDIS_URL, { maxRetriesPerRequest: null });
  const handle = async ({ data, attemptsMade }) => {
    if (attemptsMade === 0) logEvent(data);
    await trackCall(redis, data.call);
    await updateCrm(data);
  };
  new Worker("updates", handle, { connection: redis, concurrency: CONCURRENCY }).on("error", (error) =>
    console.error(error.message),
  );
}

if (cluster.isPrimary) cluster.fork();
work();
