// Questions and answers in words. All that came from outside becomes text nodes: nothing of it is ever read as HTML.

import {describe} from "./problems.js";
import {labelOf, toPieces} from "./spans.js";

/** `<name class=…>` with attributes and children; texts become text nodes. */
export function element(name, {className = "", ...attributes} = {}, ...children) {
  const made = document.createElement(name);
  made.className = className;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/**
 * Shows turns in `list`: `[{question, text, masks, status, error, waitS}]`; the status is `asking`, `answering`, `waiting`, `done`,
 * `stopped` or `failed`. `handlers`: `onLight(turn, masks)` while a phrase or a mask's button has the pointer or the focus (`[]` when it
 * leaves), `onPin(turn, masks)`, `onToggle(turn, mask)`, `onSelect(turn)`, `onAgain(turn)`, `onCode(turn)`.
 */
export class Transcript {
  #list; #handlers; #views = new Map(); #masksOf = new WeakMap();

  constructor(list, handlers) {
    this.#list = list;
    this.#handlers = handlers;
    const light = (event, isOn) => {
      const named = event.target.closest?.("[data-masks]");
      if (named && !named.contains(event.relatedTarget)) handlers.onLight(this.#turnOf(named), isOn ? this.#masksOf.get(named) : []);
    };
    for (const kind of ["mouseover", "focusin"]) list.addEventListener(kind, (event) => light(event, true));
    for (const kind of ["mouseout", "focusout"]) list.addEventListener(kind, (event) => light(event, false));
    list.addEventListener("click", (event) => this.#click(event));
    list.addEventListener("keydown", (event) => {
      if (!event.target.matches(".phrase") || ![" ", "Enter"].includes(event.key)) return;
      event.preventDefault();
      event.target.click();
    });
  }

  /** Brings the page up to date; `lit` are the masks that stand out, `selected` is the turn whose masks are on the photo. */
  render(turns, lit, selected) {
    for (const [turn, view] of this.#views) {
      if (turns.includes(turn)) continue;
      view.article.remove();
      this.#views.delete(turn);
    }
    for (const turn of turns) {
      if (!this.#views.has(turn)) this.#add(turn, turns.indexOf(turn));
      this.#update(turn, lit, turn === selected);
    }
  }

  #turnOf(inside) {
    const article = inside.closest("article");
    return [...this.#views].find(([, view]) => view.article === article)[0];
  }

  #click(event) {
    const article = event.target.closest("article");
    if (!article) return;
    const turn = this.#turnOf(article);
    const button = event.target.closest("button, .phrase");
    if (!button) this.#handlers.onSelect(turn);
    else if (button.classList.contains("again")) this.#handlers.onAgain(turn);
    else if (button.classList.contains("code")) this.#handlers.onCode(turn);
    else if (button.classList.contains("switch")) this.#handlers.onToggle(turn, this.#masksOf.get(button)[0]);
    else this.#handlers.onPin(turn, this.#masksOf.get(button));
  }

  #add(turn, index) {
    const question = element("h3", {className: "question", id: `question-${index}`}, turn.question);
    const answer = element("p", {className: "answer"});
    const masks = element("ul", {className: "masks", "aria-label": "Masks; switch each on or off"});
    const problem = element("div", {className: "problem", role: "alert"});
    const waiting = element("p", {className: "waiting"});
    const again = element("button", {className: "again plain", type: "button"}, "Ask again");
    const code = element("button", {className: "code plain", type: "button"}, "Use it from code");
    const actions = element("p", {className: "actions"}, again, code);
    const parts = [question, answer, masks, problem, waiting, actions];
    const article = element("article", {className: "turn", "aria-labelledby": question.id}, ...parts);
    this.#list.append(article);
    this.#views.set(turn, {article, answer, masks, problem, waiting, again, code, drawn: null});
  }

  #update(turn, lit, isSelected) {
    const view = this.#views.get(turn);
    const isOpen = turn.status === "asking" || turn.status === "answering";
    const drawn = `${turn.text.length} ${turn.masks.length}`;
    if (view.drawn !== drawn) {
      const focused = this.#masksOf.get(document.activeElement);
      this.#drawAnswer(turn, view);
      view.drawn = drawn;
      if (focused) this.#named(view).find((each) => this.#masksOf.get(each)[0] === focused[0])?.focus();
    }
    view.article.classList.toggle("selected", isSelected);
    view.article.classList.toggle("open", isOpen);
    view.answer.hidden = !isOpen && !turn.text;
    for (const named of this.#named(view)) {
      named.classList.toggle("lit", this.#masksOf.get(named).some((mask) => lit.includes(mask)));
      if (named.classList.contains("switch")) named.setAttribute("aria-pressed", this.#masksOf.get(named)[0].isShown);
    }
    this.#drawProblem(turn, view);
    view.again.hidden = turn.status !== "failed" && turn.status !== "stopped" && turn.status !== "waiting";
    view.again.textContent = turn.status === "waiting" ? "Ask now" : "Ask again";
    view.code.hidden = turn.status !== "done";
  }

  #named = (view) => [...view.article.querySelectorAll("[data-masks]")];

  #drawAnswer(turn, view) {
    const name = (made, masks) => {
      this.#masksOf.set(made, masks);
      made.dataset.masks = masks.map((mask) => mask.id).join(" ");
      made.style.setProperty("--color", masks[0].color);
      return made;
    };
    view.answer.replaceChildren(...toPieces(turn.text, turn.masks).map(({text, masks}) => {
      if (!masks.length) return text;
      const label = text || labelOf(masks[0], turn.masks.indexOf(masks[0]));
      // not a <button>, which would stay on one line and away from the full stop after it
      return name(element("span", {className: text.trim() ? "phrase" : "phrase wordless", role: "button", tabindex: "0"}, label), masks);
    }));
    view.masks.replaceChildren(...turn.masks.map((mask, index) => {
      const share = 100 * mask.area / (mask.rle.width * mask.rle.height);
      const figures = `${Math.round(100 * mask.score)} % sure, ${share < 1 ? share.toFixed(1) : Math.round(share)} % of the photo`;
      const parts = [element("span", {className: "swatch"}), element("span", {className: "label"}, labelOf(mask, index)),
                     element("span", {className: "figures"}, figures)];
      return element("li", {}, name(element("button", {className: "switch", type: "button"}, ...parts), [mask]));
    }));
  }

  #drawProblem(turn, view) {
    const nothing = {title: turn.status === "stopped" ? "Stopped." : "", help: ""};
    const {title, help} = turn.error ? describe(turn.error, turn.status === "waiting") : nothing;
    const words = `${title} ${help}`.trim();
    if (view.problem.textContent !== words) view.problem.replaceChildren(element("strong", {}, title), ` ${help}`);
    view.problem.hidden = !words;
    view.waiting.hidden = turn.status !== "waiting";
    view.waiting.textContent = turn.status === "waiting" ? `Asking again by itself in ${turn.waitS} s.` : "";
  }
}
