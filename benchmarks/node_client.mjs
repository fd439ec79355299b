// OpenAI's Node client against the routing proxy; `node_client.py` starts both ends and runs this.
// In: BASE_URL. Out: a line for each check; exits with 1 when one fails.
import OpenAI from "openai";

const client = (key) => new OpenAI({ baseURL: process.env.BASE_URL, apiKey: key, maxRetries: 2 });
const all = client("key-all");
const messages = [{ role: "user", content: "how long do owls live" }];
const image = [{ role: "user", content: [{ type: "text", text: "what" }, { type: "image_url", image_url: { url: "data:" } }] }];
const tool = { type: "function", function: { name: "look_up", parameters: { type: "object", properties: {} } } };

async function refused(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error("was not refused");
}

const checks = {
  async "an answer, and whose it is"() {
    const { data, response } = await all.chat.completions.create({ model: "auto", messages }).withResponse();
    return data.choices[0].message.content.startsWith("Owls") && response.headers.get("x-r1ranker-model") === "eyes";
  },
  async "a stream with its usage"() {
    const stream = await all.chat.completions.create({
      model: "auto", messages, stream: true, stream_options: { include_usage: true },
    });
    let text = "", usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    return text.trim() === "Owls live long é." && usage.prompt_tokens === 1000;
  },
  async "a tool call"() {
    const answer = await all.chat.completions.create({ model: "auto", messages, tools: [tool] });
    return answer.choices[0].message.tool_calls[0].function.name === "look_up";
  },
  async "images go where they are read, and are refused elsewhere"() {
    await all.chat.completions.create({ model: "auto", messages: image });
    return (await refused(all.chat.completions.create({ model: "blind", messages: image }))).status === 400;
  },
  async "a dead first choice"() {
    const { response } = await all.chat.completions.create({ model: "r-dead", messages }).withResponse();
    return response.headers.get("x-r1ranker-fallbacks") === "1";
  },
  async "all fail: no retry"() {
    const error = await refused(all.chat.completions.create({ model: "hopeless", messages }));
    return error.status === 502 && error.headers.get("x-should-retry") === "false";
  },
  async "a stream that is cut raises"() {
    const error = await refused((async () => {
      for await (const _ of await all.chat.completions.create({ model: "midway", messages, stream: true }));
    })());
    return /broke off/.test(error.message);
  },
  async "a spent budget"() {
    const poor = client("key-poor");
    const error = await refused((async () => {
      for (let n = 0; n < 5; n++) await poor.chat.completions.create({ model: "good", messages });
    })());
    return error.status === 429 && error.code === "insufficient_quota";
  },
  async "wishes in the body"() {
    const { response } = await all.chat.completions
      .create({ model: "auto:cost", messages, router: { candidates: ["good"], explain: true } }).withResponse();
    return JSON.parse(response.headers.get("x-r1ranker-order")).order[0].model === "good";
  },
  async "models"() {
    const names = [];
    for await (const model of all.models.list()) names.push(model.id);
    return names.includes("auto") && names.includes("good");
  },
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  const fine = await check().catch((error) => (console.log(error), false));
  console.log(fine ? "ok    " : "FAILED", name);
  failed += !fine;
}
process.exit(failed ? 1 : 0);
