// The photo with its masks: shows them, and says which one the pointer is on.

import {buildLayer, paint, paintSize} from "./paint.js";
import {covers} from "./rle.js";

const isCalm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** `onPoint(mask or null)` when the pointer moves onto another mask, `onPick(mask or null)` when it is pressed there. */
export class Stage {
  #frame; #image; #canvas; #photo = null; #masks = []; #lit = []; #pointed = null; #opacity = 0.5; #frameRequest = 0;

  constructor(frame, {onPoint, onPick}) {
    this.#frame = frame;
    this.#image = frame.querySelector("img");
    this.#canvas = frame.querySelector("canvas");
    const point = (mask) => {
      if (mask !== this.#pointed) onPoint((this.#pointed = mask));
    };
    frame.addEventListener("pointermove", (event) => point(this.#maskAt(event)));
    frame.addEventListener("pointerleave", () => point(null));
    frame.addEventListener("click", (event) => onPick(this.#maskAt(event)));
  }

  /** The photo on the stage, an element that can be drawn. */
  get image() {
    return this.#image;
  }

  get opacity() {
    return this.#opacity;
  }

  set opacity(share) {
    this.#opacity = share;
    this.#draw();
  }

  setPhoto(photo) {
    this.#photo = photo;
    this.#image.src = photo.url;
    this.#image.alt = `Your photo: ${photo.name}`;
    this.#frame.style.setProperty("--ratio", photo.width / photo.height);
    Object.assign(this.#canvas, paintSize(photo.width, photo.height));
    this.show([], []);
  }

  /** `masks`, `[{rle, color, isShown, bornMs}]`, of one answer; those that are `lit` are seen even if they are not shown. */
  show(masks, lit) {
    this.#masks = masks;
    this.#lit = lit;
    this.#frame.classList.toggle("points", this.#pointed !== null);
    this.#draw();
  }

  #maskAt(event) {
    if (!this.#photo) return null;
    const box = this.#canvas.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left) / box.width * this.#photo.width);
    const y = Math.floor((event.clientY - box.top) / box.height * this.#photo.height);
    const here = this.#masks.filter((mask) => mask.isShown && covers(mask.rle, x, y));
    return here.sort((a, b) => a.area - b.area)[0] ?? null;
  }

  #draw() {
    cancelAnimationFrame(this.#frameRequest);
    const step = (nowMs) => {
      const context = this.#canvas.getContext("2d");
      context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
      const seen = this.#masks.filter((mask) => mask.isShown || this.#lit.includes(mask));
      const layers = seen.map((mask) => ({
        layer: (mask.layer ??= buildLayer(mask.rle, mask.color, this.#canvas)),
        isLit: this.#lit.includes(mask),
        bornMs: isCalm() ? -Infinity : mask.bornMs,
      }));
      if (paint(context, layers, this.#opacity, nowMs)) this.#frameRequest = requestAnimationFrame(step);
    };
    this.#frameRequest = requestAnimationFrame(step);
  }
}
