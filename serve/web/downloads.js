// Files made of an answer: the photo with its masks as a PNG, and COCO annotations.

import {buildLayer, paint} from "./paint.js";
import {labelOf} from "./spans.js";

/** PNG blob as large as the photo, `image`, with the masks that are shown. */
export function toOverlay(image, masks, opacity) {
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const shown = masks.filter((mask) => mask.isShown);
  paint(context, shown.map((mask) => ({layer: buildLayer(mask.rle, mask.color, canvas), isLit: false, bornMs: -Infinity})), opacity, 0);
  return canvas.convertToBlob({type: "image/png"});
}

/** A COCO file of the masks that are shown, with one category for each phrase; its `info` says what was asked and answered. */
export function toCoco(photo, turn) {
  const shown = turn.masks.filter((mask) => mask.isShown);
  const labels = [...new Set(shown.map(labelOf))];
  const content = {
    info: {description: "Masks of an answer by PixelLM", model: turn.model, question: turn.question, answer: turn.text},
    images: [{id: 1, file_name: photo.name, width: photo.width, height: photo.height}],
    categories: labels.map((name, index) => ({id: index + 1, name})),
    annotations: shown.map((mask, index) => ({
      id: index + 1, image_id: 1, category_id: labels.indexOf(labelOf(mask, index)) + 1, segmentation: mask.segmentation,
      area: mask.area, bbox: mask.bbox, iscrowd: 0, score: mask.score,
    })),
  };
  return new Blob([JSON.stringify(content, null, 2)], {type: "application/json"});
}

/** Lets the browser save `blob` under the photo's name with `ending` in place of its own. */
export function save(blob, photoName, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = photoName.replace(/\.[^.]*$/, "") + ending;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
