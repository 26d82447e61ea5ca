// Failures in words for people: what happened, and what to do next.

/** `{title, help}` for an AskError, `help` in the server's own words where it gave some. `isWaiting`: it will be asked again by itself. */
export function describe(error, isWaiting = false) {
  const {title, help} = words(error);
  const {retryAfterS} = error;
  if (retryAfterS === null || isWaiting) return {title, help};
  const pause = retryAfterS < 120 ? `${Math.ceil(retryAfterS)} seconds` : `${Math.ceil(retryAfterS / 60)} minutes`;
  return {title, help: `${help} The server wants ${pause} of pause.`.trim()};
}

function words({status, code, message}) {
  if (code === "cut") return {title: "The connection was lost.", help: "What came of the answer is kept above. Ask again for all of it."};
  if (status === 0) {
    return {title: "The server cannot be reached.", help: "Check the connection, then ask again. Your photo and questions are kept."};
  }
  if (status === 401) {
    const reason = code === "key_missing" ? "" : message; // that one is for those who write programs
    return {title: "This server asks for a key.", help: `${reason} Enter it below the question, then ask again.`.trim()};
  }
  if (status === 403) return {title: "This server does not let you ask.", help: message};
  if (status === 429) return {title: "Too many questions at once.", help: message || "The server limits how often you can ask."};
  if (status === 503) return {title: "The server is busy.", help: message || "Others are being answered first, or the model is starting."};
  if (status === 504) return {title: "The answer took too long.", help: "Ask again, or ask for less at a time."};
  if (status === 413) return {title: "The photo is too large.", help: message || "Make it smaller and choose it again."};
  if (status >= 500) return {title: "The server failed on this question.", help: message || "Ask again."};
  return {title: "This cannot be asked.", help: message || "Change the question or the photo."};
}

/** Whether waiting may help, so that the page asks again by itself. */
export const isBusy = (error) => error.status === 429 || error.status === 503;
