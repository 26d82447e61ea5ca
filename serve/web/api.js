// The server's chat protocol (OpenAI's, with masks): which models there are, and an answer while it is written.

export const SERVER = new URL(".", document.baseURI).href;

/** A question without an answer. `status` is 0 where the connection failed; `retryAfterS` is null unless the server named a time. */
export class AskError extends Error {
  constructor(status, code, detail, retryAfterS = null) {
    super(detail);
    Object.assign(this, {status, code, retryAfterS});
  }
}

/** Names of the models that can be asked. Throws AskError. */
export async function listModels(key) {
  const response = await send("v1/models", {headers: authorization(key)});
  return (await response.json()).data.map((model) => model.id);
}

/**
 * Asks `question` about `photo` after the `turns` before it, `[{question, text, masks}]`.
 * Yields `{text}` for each piece of the answer and `{mask}` for each mask; ends when the answer is complete. Throws AskError.
 */
export async function* ask({photo, turns, question, model, key, signal}) {
  const body = JSON.stringify({model, messages: toMessages(turns, question, photo.dataUrl), stream: true});
  const headers = {"content-type": "application/json", ...authorization(key)};
  const response = await send("v1/chat/completions", {method: "POST", headers, body, signal});
  for await (const {kind, data} of readEvents(response)) {
    if (data === "[DONE]") return;
    const part = JSON.parse(data);
    if (kind === "error") throw new AskError(part.status, part.code, part.detail);
    const delta = part.choices[0]?.delta;
    if (delta?.content) yield {text: delta.content};
    for (const mask of delta?.masks ?? []) yield {mask};
  }
  throw new AskError(0, "cut", "The answer broke off.");
}

/** Messages of a conversation; the photo is part of the first question, and of an answer's masks only their places are said. */
export function toMessages(turns, question, photoUrl) {
  const messages = [...turns, {question}].flatMap((turn) => [
    {role: "user", content: turn.question},
    {role: "assistant", content: turn.text, masks: turn.masks?.map((mask) => ({span: mask.span}))},
  ]).slice(0, -1);
  messages[0].content = [{type: "image_url", image_url: {url: photoUrl}}, {type: "text", text: messages[0].content}];
  return messages;
}

const authorization = (key) => (key ? {authorization: `Bearer ${key}`} : {});

async function send(path, options) {
  let response;
  try {
    response = await fetch(SERVER + path, options);
  } catch (error) {
    throw toAskError(error);
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const seconds = Number.parseFloat(response.headers.get("retry-after"));
  throw new AskError(response.status, problem.code ?? "no_problem", problem.detail ?? "", Number.isNaN(seconds) ? null : seconds);
}

const toAskError = (error) => (error.name === "AbortError" ? error : new AskError(0, "network", "There is no connection."));

// Server-sent events (WHATWG HTML, section 9.2) as far as this server writes them: each is `event` and one line of `data`.
async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const {value, done} = await reader.read().catch((error) => Promise.reject(toAskError(error)));
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s, 2)));
        if ("data" in fields) yield {kind: fields.event ?? "message", data: fields.data};
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
