// Masks as coloured layers over a photo, at any size. Knows canvases, nothing of the page.

import {resample} from "./rle.js";

const APPEAR_MS = 350;
const SHADE = "rgb(12 14 13 / 55%)"; // over all but the mask that is lit

/** Size in pixels at which to draw over a photo: fine enough for smooth edges, small enough to stay quick. */
export function paintSize(width, height) {
  const scale = Math.min(Math.max(1, 1200 / Math.max(width, height)), Math.max(0.01, 2000 / Math.max(width, height)));
  return {width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale))};
}

/** `{fill, edge, x, y}` of a mask drawn in `color` (#rrggbb) on `size`: two canvases as large as what they hold. */
export function buildLayer(rle, color, {width, height}) {
  const inside = resample(rle, width, height);
  const box = boundsOf(inside, width);
  if (!box) return null;
  const rgb = [1, 3, 5].map((at) => Number.parseInt(color.slice(at, at + 2), 16));
  const fill = new ImageData(box.width, box.height), edge = new ImageData(box.width, box.height);
  const line = Math.max(1, Math.round(Math.max(width, height) / 400));
  for (let y = 0; y < box.height; y++) {
    for (let x = 0; x < box.width; x++) {
      const at = (box.y + y) * width + box.x + x;
      if (!inside[at]) continue;
      const pixel = 4 * (y * box.width + x);
      fill.data.set([...rgb, 255], pixel);
      if (nearOutside(box.x + x, box.y + y, line)) edge.data.set([255, 255, 255, 255], pixel);
      else if (nearOutside(box.x + x, box.y + y, 3 * line)) edge.data.set([...rgb, 255], pixel);
    }
  }
  return {fill: toCanvas(fill), edge: toCanvas(edge), x: box.x, y: box.y};

  // The photo's border counts as inside, so that no line runs along it.
  function nearOutside(x, y, distance) {
    const slant = Math.ceil(0.7 * distance);
    for (const [right, down] of [[distance, 0], [0, distance], [slant, slant], [slant, -slant]]) {
      for (const sign of [1, -1]) {
        const toX = x + sign * right, toY = y + sign * down;
        if (toX >= 0 && toY >= 0 && toX < width && toY < height && !inside[toY * width + toX]) return true;
      }
    }
    return false;
  }
}

function boundsOf(inside, width) {
  let [left, top, right, bottom] = [Infinity, Infinity, -1, -1];
  for (let at = inside.indexOf(1); at >= 0; at = inside.indexOf(1, at + 1)) {
    const x = at % width, y = (at - x) / width;
    left = Math.min(left, x);
    right = Math.max(right, x);
    top = Math.min(top, y);
    bottom = y;
  }
  return right < 0 ? null : {x: left, y: top, width: right - left + 1, height: bottom - top + 1};
}

function toCanvas(pixels) {
  const canvas = new OffscreenCanvas(pixels.width, pixels.height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/**
 * Paints `layers`, `[{layer, isLit, bornMs}]`, in their order, onto a canvas' context; `opacity` (0 to 1) is the weight of the colours.
 * Where one is lit, the rest of the photo lies in the shade. Returns whether a mask is still appearing at `nowMs`.
 */
export function paint(context, layers, opacity, nowMs) {
  const lit = layers.filter((each) => each.isLit && each.layer);
  let isMoving = false;
  const drawAll = (some, fillShare, edgeShare) => {
    for (const part of ["fill", "edge"]) { // all colours before all edges, so that none lies over another mask's edge
      for (const {layer, bornMs} of some) {
        if (!layer) continue;
        const age = Math.min(1, Math.max(0, (nowMs - bornMs) / APPEAR_MS));
        isMoving ||= age < 1;
        context.globalAlpha = age * (part === "fill" ? fillShare * opacity : edgeShare);
        context.drawImage(layer[part], layer.x, layer.y);
      }
    }
    context.globalAlpha = 1;
  };
  drawAll(layers.filter((each) => !each.isLit), 1, lit.length ? 0.4 : 1);
  if (lit.length) {
    context.fillStyle = SHADE;
    context.fillRect(0, 0, context.canvas.width, context.canvas.height);
    context.globalCompositeOperation = "destination-out";
    for (const {layer} of lit) context.drawImage(layer.fill, layer.x, layer.y);
    context.globalCompositeOperation = "source-over";
    drawAll(lit, 0.6, 1);
  }
  return isMoving;
}
