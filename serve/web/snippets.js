// What was just asked, as commands for a terminal and as Python with OpenAI's client. Both read the photo's file from the current folder.

import {SERVER, toMessages} from "./api.js";

const PHOTO = "PHOTO"; // stands for the photo's data: URL until the quoting is done

/** For a POSIX shell. A first question is a form; one that follows needs the conversation before it. */
export function toCurl({photo, turns, question, model, isOneOfMany, hasKey}) {
  const key = hasKey ? ` \\\n  -H "Authorization: Bearer $PIXELLM_API_KEY"` : "";
  if (!turns.length) {
    const file = `image=@"${photo.name.replace(/["\\]/g, "\\$&")}"`;
    const choice = isOneOfMany ? ` \\\n  --form-string ${quoted(`model=${model}`)}` : "";
    return `curl ${SERVER}v1/segment${key}${choice} \\\n  -F ${quoted(file)} \\\n  --form-string ${quoted(`question=${question}`)}`;
  }
  const body = JSON.stringify({model, messages: toMessages(turns, question, PHOTO)}, null, 1);
  const escaped = body.replace(/[\\$`]/g, "\\$&");
  const url = `data:${photo.type};base64,$(base64 < ${quoted(photo.name)} | tr -d '\\n')`;
  return `curl ${SERVER}v1/chat/completions${key} \\\n  -H 'content-type: application/json' --data-binary @- <<END\n`
    + `${escaped.replace(`"${PHOTO}"`, () => `"${url}"`)}\nEND`;
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** For Python with the package `openai`. JSON's texts are Python's, too. */
export function toPython({photo, turns, question, model, hasKey}) {
  const messages = JSON.stringify(toMessages(turns, question, PHOTO), null, 4);
  const key = hasKey ? `os.environ["PIXELLM_API_KEY"]` : `"none"`;
  return `${hasKey ? "import base64\nimport os" : "import base64"}

from openai import OpenAI

with open(${JSON.stringify(photo.name)}, "rb") as file:
    photo = "data:${photo.type};base64," + base64.b64encode(file.read()).decode()
messages = ${messages.replace(`"${PHOTO}"`, () => "photo")}
client = OpenAI(base_url=${JSON.stringify(`${SERVER}v1`)}, api_key=${key})
message = client.chat.completions.create(model=${JSON.stringify(model)}, messages=messages).choices[0].message
print(message.content)
for mask in message.masks:
    print(mask["label"], mask["score"], mask["bbox"])
`;
}
