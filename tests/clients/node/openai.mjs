// The official `openai` client for Node: everything of the API that the backend speaks.
import OpenAI, { toFile } from 'openai';
import { zodResponseFormat, zodTextFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import { ask, EMBED, MODEL, PIXEL, run, step } from './steps.mjs';

const options = { maxRetries: 0, timeout: 20_000 };
const client = new OpenAI(options);
const INSTRUCT = 'gpt-3.5-turbo-instruct';
const BYTES = Uint8Array.from({ length: 256 }, (_, byte) => byte);
const Thing = z.object({ name: z.string(), uses: z.array(z.string()), weight: z.number() });
const parameters = { type: 'object', properties: { city: { type: 'string' }, days: { type: 'integer' } } };
const WEATHER = { type: 'function', function: { name: 'weather', parameters } };
const TIME = { type: 'function', function: { name: 'time', parameters } };

const user = (name, question) => [{ role: 'user', content: ask(name, question) }];
const create = (name, more) => client.chat.completions.create({ model: MODEL, messages: user(name), ...more });

/** What a user collects from a stream. */
async function folded(chunks) {
  const told = { text: {}, finish: {}, calls: {}, logprobs: 0, usage: null };
  for await (const chunk of chunks) {
    told.usage = chunk.usage ?? told.usage;
    for (const { index, delta, finish_reason: finish, logprobs } of chunk.choices) {
      told.text[index] = (told.text[index] ?? '') + (delta.content ?? '');
      told.logprobs += logprobs?.content?.length ?? 0;
      if (finish) told.finish[index] = finish;
      for (const call of delta.tool_calls ?? []) {
        const known = (told.calls[call.index] ??= { name: '', arguments: '' });
        known.name += call.function.name ?? '';
        known.arguments += call.function.arguments ?? '';
      }
    }
  }
  return told;
}

step('chat', (name) => create(name));
step('system', (name) =>
  create(name, { messages: [{ role: 'system', content: 'Be brief.' }, ...user(name)], temperature: 0 }));
step('turns', async (name) => {
  const first = await create(name);
  return create(name, { messages: [...user(name), first.choices[0].message, ...user(name, 'Are you sure?')] });
});
step('stream', async (name) => folded(await create(name, { stream: true })));
step('stream-usage', async (name) =>
  folded(await create(name, { stream: true, stream_options: { include_usage: true } })));
step('stream-helper', (name) => client.chat.completions.stream({ model: MODEL, messages: user(name) }).finalChatCompletion());
step('with-response', async (name) => {
  const { data, response } = await create(name).withResponse();
  return [response.status, response.headers.get('content-type'), data];
});
step('many', (name) => Promise.all(Array.from({ length: 8 }, () => create(name))));
step('tools', async (name) => {
  const asked = await create(name, { tools: [WEATHER, TIME] });
  const { message } = asked.choices[0];
  const results = message.tool_calls.map((call) => ({ role: 'tool', tool_call_id: call.id, content: 'sun' }));
  return [asked, await create(name, { tools: [WEATHER, TIME], messages: [...user(name), message, ...results] })];
});
step('tools-stream', async (name) => folded(await create(name, { tools: [WEATHER, TIME], stream: true })));
step('json-object', (name) => create(name, { response_format: { type: 'json_object' } }));
step('parse', async (name) => {
  const response_format = zodResponseFormat(Thing, 'thing');
  const parsed = await client.chat.completions.parse({ model: MODEL, messages: user(name), response_format });
  return parsed.choices[0].message.parsed;
});
step('vision', (name) =>
  create(name, {
    messages: [
      { role: 'user', content: [{ type: 'text', text: ask(name) }, { type: 'image_url', image_url: { url: PIXEL } }] },
    ],
  }));
step('logprobs', (name) => create(name, { logprobs: true, top_logprobs: 2 }));
step('logprobs-stream', async (name) => folded(await create(name, { logprobs: true, stream: true })));
step('two', (name) => create(name, { n: 2 }));
step('two-stream', async (name) => folded(await create(name, { n: 2, stream: true })));
step('completions', (name) => client.completions.create({ model: INSTRUCT, prompt: ask(name) }));
step('completions-stream', async (name) => {
  let text = '';
  for await (const chunk of await client.completions.create({ model: INSTRUCT, prompt: ask(name), stream: true })) {
    text += chunk.choices[0]?.text ?? '';
  }
  return text;
});
step('responses', async (name) => {
  const answered = await client.responses.create({ model: MODEL, input: ask(name), store: false });
  return [answered.output_text, answered];
});
step('responses-stream', async (name) => {
  const kinds = new Set();
  let text = '';
  for await (const event of await client.responses.create({ model: MODEL, input: ask(name), stream: true, store: false })) {
    kinds.add(event.type);
    if (event.type === 'response.output_text.delta') text += event.delta;
  }
  return [[...kinds].sort(), text];
});
step('responses-parse', async (name) => {
  const text = { format: zodTextFormat(Thing, 'thing') };
  return (await client.responses.parse({ model: MODEL, input: ask(name), text, store: false })).output_parsed;
});
step('embed', (name) => client.embeddings.create({ model: EMBED, input: ask(name) }));
step('embed-list', (name) => client.embeddings.create({ model: EMBED, input: [ask(name, 'a'), ask(name, 'b')] }));
step('embed-float', (name) =>
  client.embeddings.create({ model: EMBED, input: [ask(name, 'a')], encoding_format: 'float', dimensions: 8 }));
step('embed-base64', (name) =>
  client.embeddings.create({ model: EMBED, input: [ask(name, 'a')], encoding_format: 'base64', dimensions: 8 }));
step('models', async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  return [names, await client.models.retrieve(MODEL)];
});
step('files', async (name) => {
  const stored = await client.files.create({ file: await toFile(BYTES, 'a b.jsonl'), purpose: 'batch' });
  const content = await (await client.files.content(stored.id)).arrayBuffer();
  const listed = [];
  for await (const file of client.files.list({ limit: 3 })) listed.push(file);
  return [stored, Buffer.from(content).toString('hex'), listed, await client.files.delete(stored.id)];
});
step('speech', async (name) => {
  const told = await client.audio.speech.create({ model: 'tts-1', voice: 'alloy', input: ask(name) });
  return Buffer.from(await told.arrayBuffer()).toString('hex');
});
step('transcription', async () =>
  client.audio.transcriptions.create({ model: 'whisper-1', file: await toFile(BYTES, 'a.wav') }));
step('images', (name) => client.images.generate({ model: 'gpt-image-1', prompt: ask(name), n: 2 }));
step('moderations', (name) => client.moderations.create({ input: ask(name) }));
step('batches', async () => {
  const more = { endpoint: '/v1/chat/completions', completion_window: '24h' };
  const made = await client.batches.create({ input_file_id: 'file-1', ...more });
  return [made, await client.batches.retrieve(made.id), await client.batches.cancel(made.id)];
});
step('unauthorized', (name) =>
  new OpenAI({ ...options, apiKey: 'sk-wrong' }).chat.completions.create({ model: MODEL, messages: user(name) }));
step('bad-request', (name) => create(name));
step('server-error', (name) => create(name));
step('rate-limited', (name) =>
  client.chat.completions.create({ model: MODEL, messages: user(name) }, { maxRetries: 2 }));
step('not-found', () => client.get('/no/such/route'));
step('slow', (name) => client.chat.completions.create({ model: MODEL, messages: user(name) }, { timeout: 300 }));
step('endless', async (name) => {
  const seen = [];
  for await (const chunk of await create(name, { stream: true })) {
    seen.push(chunk.choices[0].delta.content);
    if (seen.length === 3) break;
  }
  return seen;
});

await run();
