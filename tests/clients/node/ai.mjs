// Vercel's AI SDK: texts, streams, tools, objects and embeddings, by its OpenAI and its OpenAI-compatible provider.
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import {
  embed, embedMany, experimental_generateImage, experimental_generateSpeech, experimental_transcribe, generateText,
  Output, stepCountIs, streamText, tool,
} from 'ai';
import { z } from 'zod';
import { ask, EMBED, KEY, MODEL, PIXEL, run, step, URL } from './steps.mjs';

globalThis.AI_SDK_LOG_WARNINGS = false;
const openai = createOpenAI({ baseURL: URL, apiKey: KEY });
const alike = createOpenAICompatible({ name: 'alike', baseURL: URL, apiKey: KEY, includeUsage: true });
const shaped = createOpenAICompatible({ name: 'shaped', baseURL: URL, apiKey: KEY, supportsStructuredOutputs: true });
const chat = openai.chat(MODEL);
const unstored = { openai: { store: false } };
const Thing = z.object({ name: z.string(), uses: z.array(z.string()) });
const tools = {
  weather: tool({
    inputSchema: z.object({ city: z.string(), days: z.number().int() }),
    execute: async ({ city, days }) => `${days} days of sun in ${city}`,
  }),
};
const ended = { maxRetries: 0, onError: () => {} };

const told = ({ text, finishReason, usage }) => ({ text, finishReason, usage });

async function streamed(options) {
  const result = streamText({ ...ended, ...options });
  let text = '';
  const kinds = new Set();
  for await (const part of result.fullStream) {
    kinds.add(part.type);
    if (part.type === 'text-delta') text += part.text;
    if (part.type === 'error') throw part.error;
  }
  return { text, kinds: [...kinds].sort(), finish: await result.finishReason, usage: await result.totalUsage };
}

step('chat', async (name) => told(await generateText({ ...ended, model: chat, prompt: ask(name) })));
step('system', async (name) =>
  told(await generateText({ ...ended, model: chat, system: 'Be brief.', prompt: ask(name), temperature: 0 })));
step('turns', async (name) => {
  const messages = [
    { role: 'user', content: 'Where is Cape Canaveral?' },
    { role: 'assistant', content: 'In Florida.' },
    { role: 'user', content: ask(name) },
  ];
  return told(await generateText({ ...ended, model: chat, messages }));
});
step('stream', (name) => streamed({ model: chat, prompt: ask(name) }));
step('tools', async (name) => {
  const result = await generateText({ ...ended, model: chat, tools, stopWhen: stepCountIs(3), prompt: ask(name) });
  return [result.steps.map(({ toolCalls, toolResults }) => ({ toolCalls, toolResults })), told(result)];
});
step('tools-stream', (name) => streamed({ model: chat, tools, stopWhen: stepCountIs(3), prompt: ask(name) }));
step('object', async (name) =>
  (await generateText({ ...ended, model: chat, output: Output.object({ schema: Thing }), prompt: ask(name) })).output);
step('object-stream', async (name) => {
  const result = streamText({ ...ended, model: chat, output: Output.object({ schema: Thing }), prompt: ask(name) });
  return result.output;
});
step('vision', async (name) => {
  const content = [{ type: 'text', text: ask(name) }, { type: 'image', image: PIXEL }];
  return told(await generateText({ ...ended, model: chat, messages: [{ role: 'user', content }] }));
});
step('logprobs', async (name) => {
  const providerOptions = { openai: { logprobs: 2 } };
  const result = await generateText({ ...ended, model: chat, prompt: ask(name), providerOptions });
  return [told(result), result.providerMetadata];
});
step('alike', async (name) => told(await generateText({ ...ended, model: alike(MODEL), prompt: ask(name) })));
step('alike-stream', (name) => streamed({ model: alike(MODEL), prompt: ask(name) }));
step('alike-object', async (name) => {
  const output = Output.object({ schema: Thing });
  return (await generateText({ ...ended, model: shaped(MODEL), output, prompt: ask(name) })).output;
});
step('reasoning', async (name) => {
  const result = await generateText({ ...ended, model: alike(MODEL), prompt: ask(name) });
  return [result.reasoningText, told(result), await streamed({ model: alike(MODEL), prompt: ask(name) })];
});
step('completions', async (name) =>
  told(await generateText({ ...ended, model: openai.completion('gpt-3.5-turbo-instruct'), prompt: ask(name) })));
step('completions-stream', (name) =>
  streamed({ model: openai.completion('gpt-3.5-turbo-instruct'), prompt: ask(name) }));
step('responses', async (name) =>
  told(await generateText({ ...ended, model: openai(MODEL), prompt: ask(name), providerOptions: unstored })));
step('responses-stream', (name) =>
  streamed({ model: openai(MODEL), prompt: ask(name), providerOptions: unstored }));
step('responses-tools', async (name) =>
  told(await generateText({
    ...ended, model: openai(MODEL), tools, stopWhen: stepCountIs(3), prompt: ask(name), providerOptions: unstored,
  })));
step('embed', async (name) =>
  (await embed({ ...ended, model: openai.textEmbeddingModel(EMBED), value: ask(name) })).embedding);
step('embed-many', async (name) =>
  (await embedMany({ ...ended, model: openai.textEmbeddingModel(EMBED), values: [ask(name, 'a'), ask(name, 'b')] }))
    .embeddings);
step('image', async (name) =>
  (await experimental_generateImage({ ...ended, model: openai.image('gpt-image-1'), prompt: ask(name) })).image.base64);
step('speech', async (name) =>
  (await experimental_generateSpeech({ ...ended, model: openai.speech('tts-1'), text: ask(name) })).audio.base64);
step('transcription', async () =>
  (await experimental_transcribe({
    ...ended, model: openai.transcription('whisper-1'), audio: new Uint8Array(1000).fill(7),
  })).text);
step('unauthorized', async (name) =>
  told(await generateText({ ...ended, model: createOpenAI({ baseURL: URL, apiKey: 'sk-wrong' }).chat(MODEL), prompt: ask(name) })));
step('bad-request', async (name) => told(await generateText({ ...ended, model: chat, prompt: ask(name) })));
step('server-error', async (name) => told(await generateText({ ...ended, model: chat, prompt: ask(name) })));
step('rate-limited', async (name) => told(await generateText({ model: chat, maxRetries: 2, prompt: ask(name) })));
step('slow', async (name) =>
  told(await generateText({ ...ended, model: chat, prompt: ask(name), abortSignal: AbortSignal.timeout(300) })));
step('endless', async (name) => {
  const abort = new AbortController();
  const seen = [];
  for await (const text of streamText({ ...ended, model: chat, prompt: ask(name), abortSignal: abort.signal }).textStream) {
    seen.push(text);
    if (seen.length === 2) abort.abort();
  }
  return seen;
});

await run();
