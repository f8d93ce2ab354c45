// What every client program shares: named steps, run in order, each printed as one JSON line without ids and times.
import { File } from 'node:buffer';
import { readFileSync } from 'node:fs';

globalThis.File ??= File; // Node 18 has it, but not as a global; both clients want one for uploads

export const URL = process.env.OPENAI_BASE_URL;
export const KEY = process.env.OPENAI_API_KEY;
export const MODEL = 'gpt-4o-mini';
export const EMBED = 'text-embedding-3-small';
export const PIXEL =
  'data:image/png;base64,' +
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==';
const QUESTIONS = JSON.parse(readFileSync(new globalThis.URL('../questions.json', import.meta.url)));
const FRESH = new Set([
  'id', 'created', 'created_at', 'completed_at', 'item_id', 'response_id', 'call_id', 'tool_call_id',
  'toolCallId', 'responseId', 'itemId', 'timestamp', '_request_id',
]);
const steps = [];

/** Make a function a step: it gets its name, and returns what the user of the client would see. */
export function step(name, run) {
  steps.push([name, run]);
}

/** Return a prompt with the mark by which the backend knows the step. */
export function ask(name, question) {
  return `${question ?? QUESTIONS[steps.findIndex(([known]) => known === name)]} (step:${name})`;
}

function plain(value) {
  return JSON.parse(JSON.stringify(value ?? null, (key, one) => (FRESH.has(key) ? undefined : one)));
}

/** Run all steps. One that throws prints what it threw: errors are results, too. */
export async function run() {
  for (const [name, one] of steps) {
    let told;
    try {
      told = { step: name, result: plain(await one(name)) };
    } catch (error) {
      const status = error.status ?? error.statusCode ?? error.lastError?.statusCode ?? null;
      told = { step: name, raised: error.constructor.name, status, message: String(error.message).slice(0, 300) };
    }
    process.stdout.write(JSON.stringify(told) + '\n');
  }
}
