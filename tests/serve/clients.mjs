// What clients for Node get from the API, as one JSON object; run by test_clients.py in a folder with the packages.
import fs from "node:fs";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
import OpenAI from "openai";
import { z } from "zod";

const [base, apiKey, picture] = process.argv.slice(2);
const model = "tiny";
const text = "What is it?";
const bytes = fs.readFileSync(picture);
const url = `data:image/png;base64,${bytes.toString("base64")}`;
const messages = [{ role: "user", content: [{ type: "text", text }, { type: "image_url", image_url: { url } }] }];

const openai = new OpenAI({ baseURL: base, apiKey, maxRetries: 0 });
const chat = openai.chat.completions;
const found = {};
found.models = (await openai.models.list()).data.map((entry) => entry.id);
found.whole = (await chat.create({ model, messages })).choices[0].message.content;
found.streamed = await chat.stream({ model, messages }).finalContent();
const input = [{ role: "user", content: [{ type: "input_text", text }, { type: "input_image", image_url: url }] }];
found.responses = (await openai.responses.create({ model, input })).output_text;
found.error = await chat.create({ model: "none", messages }).catch((error) => [error.status, error.code]);

const ai = createOpenAICompatible({
  name: "videollama2", baseURL: base, apiKey, includeUsage: true, supportsStructuredOutputs: true,
})(model);
const asked = { model: ai, maxRetries: 0 };
const turn = [{ role: "user", content: [{ type: "text", text }, { type: "image", image: bytes }] }];
found.aiWhole = (await generateText({ ...asked, messages: turn })).text;
const stream = streamText({ ...asked, messages: turn });
found.aiStreamed = "";
for await (const piece of stream.textStream) found.aiStreamed += piece;
found.aiTokens = (await stream.usage).totalTokens;
const schema = z.object({ count: z.number().int().min(0).max(9) });
found.aiObject = (await generateObject({ ...asked, schema, messages: turn })).object;
const tools = { report: tool({ description: "Say what was seen.", inputSchema: schema }) };
const called = await generateText({ ...asked, tools, toolChoice: "required", prompt: text });
found.aiCalls = called.toolCalls.map((call) => [call.toolName, call.input]);
console.log(JSON.stringify(found));
