// Questions about one photo, one after the other: asks, gathers words and masks, waits where the server is busy. Knows no page.

import {AskError, ask} from "./api.js";
import {isBusy} from "./problems.js";
import {decodeRle} from "./rle.js";

const MAX_RETRIES = 3;
const USUAL_WAIT_S = 3, LONGEST_WAIT_S = 60; // a server that names a longer time is not asked again by itself

/**
 * `turns` are `{question, text, masks, status, error, waitS, model}`, see transcript.js; a mask is the server's own with `rle`,
 * `isShown` and `bornMs`. `onChange(turn)` tells of every piece; `findAccess()` resolves to `{model, key}` or throws AskError.
 */
export class Conversation {
  photo = null; turns = [];
  #onChange; #findAccess; #running = null;

  constructor(onChange, findAccess) {
    this.#onChange = onChange;
    this.#findAccess = findAccess;
  }

  get isBusy() {
    return this.#running !== null;
  }

  start(photo) {
    this.stop();
    this.photo = photo;
    this.turns = [];
  }

  /** The turns that the model is told before `turn`: those that it answered. */
  turnsBefore(turn) {
    return this.turns.slice(0, this.turns.indexOf(turn)).filter((each) => each.status === "done");
  }

  ask(question) {
    const turn = {question, text: "", masks: [], status: "asking", error: null, waitS: 0, model: ""};
    this.turns.push(turn);
    return this.#run(turn);
  }

  /** Asks `turn` anew, at once where it waits. */
  again(turn) {
    if (this.#running?.turn === turn) this.#running.wake();
    else if (!this.isBusy) return this.#run(turn);
  }

  stop() {
    this.#running?.controller.abort();
    this.#running?.wake();
    this.#running = null;
  }

  async #run(turn) {
    const running = {turn, controller: new AbortController(), wake: () => {}};
    this.#running = running;
    const {signal} = running.controller;
    const change = (news) => {
      Object.assign(turn, news);
      this.#onChange(turn);
    };
    for (let retries = 0; turn.status !== "done"; retries++) {
      change({status: "asking", text: "", masks: [], error: null});
      try {
        for await (const {text, mask} of this.#parts(turn, signal)) {
          if (text) change({status: "answering", text: turn.text + text});
          if (mask) change({masks: [...turn.masks, toMask(mask)]});
        }
        turn.status = "done";
      } catch (error) {
        if (signal.aborted) turn.status = "stopped";
        else if (error instanceof AskError) turn.error = error;
        else turn.error = new AskError(500, "page_failed", `The page cannot read the answer: ${error.message}.`);
        const waitS = Math.ceil(turn.error?.retryAfterS ?? USUAL_WAIT_S);
        const mayWait = turn.error && isBusy(turn.error) && retries < MAX_RETRIES && waitS <= LONGEST_WAIT_S;
        if (mayWait) await this.#wait(running, waitS, change);
        if (signal.aborted) Object.assign(turn, {status: "stopped", error: null});
        else if (!mayWait) turn.status = "failed";
        if (turn.status === "stopped" || turn.status === "failed") break;
      }
    }
    if (this.#running === running) this.#running = null;
    this.#onChange(turn);
  }

  async *#parts(turn, signal) {
    const access = await this.#findAccess();
    turn.model = access.model;
    yield* ask({...access, photo: this.photo, turns: this.turnsBefore(turn), question: turn.question, signal});
  }

  // Counts `waitS` down, second by second, until it is over or somebody calls `wake`.
  async #wait(running, waitS, change) {
    let isAwake = false;
    for (let leftS = waitS; leftS > 0 && !isAwake; leftS--) {
      change({status: "waiting", waitS: leftS});
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, 1000);
        running.wake = () => {
          isAwake = true;
          clearTimeout(timer);
          resolve();
        };
      });
    }
    running.wake = () => {};
  }
}

function toMask(mask) {
  const color = /^#[0-9a-f]{6}$/i.test(mask.color) ? mask.color : "#0072b2";
  return {...mask, color, rle: decodeRle(mask.segmentation), isShown: true, bornMs: performance.now()};
}
