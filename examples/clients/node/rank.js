// Node clients made for Cohere and OpenAI, against `r1ranker serve`: each must get the order of a plain request.
//
//   r1ranker serve --model smol
//   npm install && node rank.js http://127.0.0.1:8100 [KEY]
import { readFileSync } from "node:fs";
import { createCohere } from "@ai-sdk/cohere";
import { CohereRerank } from "@langchain/cohere";
import { rerank } from "ai";
import { CohereClient, CohereClientV2 } from "cohere-ai";
import OpenAI from "openai";

const [url = "http://127.0.0.1:8100", key = "none"] = process.argv.slice(2);
const query = "how long do barn owls live";
const documents = [
  "tractors need oil", "a barn owl lives four years", "owls eat mice at night", "the barn stands alone",
];
const headers = { "content-type": "application/json", authorization: `Bearer ${key}` };
const plain = await fetch(`${url}/rerank`, {
  method: "POST", headers, body: JSON.stringify({ query, documents, top_n: 3 }),
}).then((answer) => answer.json());
const model = plain.model;
const expected = plain.results.map((row) => row.index);
console.log(`plain request: ${model} ${expected}`);
const cohere = { token: key, environment: url };
const inOrder = (answer) => answer.results.map((row) => row.index);

const clients = {
  "cohere-ai (v1)": async () =>
    inOrder(await new CohereClient(cohere).rerank({ model, query, documents, topN: 3 })),
  "cohere-ai (v2)": async () =>
    inOrder(await new CohereClientV2(cohere).rerank({ model, query, documents, topN: 3 })),
  "ai, @ai-sdk/cohere": async () => {
    const reranking = createCohere({ baseURL: `${url}/v2`, apiKey: key }).reranking(model);
    const { ranking } = await rerank({ model: reranking, query, documents, topN: 3 });
    return ranking.map((row) => row.originalIndex);
  },
  "@langchain/cohere": async () => {
    const reranker = new CohereRerank({ client: new CohereClient(cohere), model, topN: 3 });
    return (await reranker.rerank(documents, query)).map((row) => row.index);
  },
  openai: async () => {
    const { data } = await new OpenAI({ baseURL: `${url}/v1`, apiKey: key }).models.list();
    return data.some((one) => one.id === model) ? expected : data;
  },
};
let failed = 0;
for (const [name, ask] of Object.entries(clients)) {
  const versions = name.replace(/ \(.*/, "").split(", ").map((of) => {
    const { version } = JSON.parse(readFileSync(new URL(`node_modules/${of}/package.json`, import.meta.url)));
    return `${of} ${version}`;
  });
  const found = await ask().catch((error) => error);
  const same = JSON.stringify(found) === JSON.stringify(expected);
  failed += !same;
  console.log(same ? "same order" : "FAILED", name, `(${versions.join(", ")})`, same ? "" : found);
}
process.exit(failed ? 1 : 0);
