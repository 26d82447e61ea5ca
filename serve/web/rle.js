// COCO's compressed run-length encoding -> questions about single pixels, and bitmaps at any size.
// Runs go down the columns, and the first one is outside of the mask (pycocotools: rleFrString).

/** `{size: [height, width], counts}` -> `{height, width, ends}`; `ends[i]` is where run i ends. Throws for counts of another size. */
export function decodeRle({size: [height, width], counts}) {
  const runs = [];
  for (let at = 0; at < counts.length;) {
    let value = 0, factor = 1, group;
    do {
      group = counts.charCodeAt(at++) - 48;
      if (!(group >= 0 && group < 64)) throw new RangeError(`a mask's counts hold an unknown character at ${at - 1}`);
      value += (group & 31) * factor;
      factor *= 32;
    } while (group & 32);
    if (group & 16) value -= factor;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  let end = 0;
  const ends = Uint32Array.from(runs, (run) => (end += run));
  if (end !== height * width) throw new RangeError(`a mask's runs cover ${end} pixels, expected ${height} x ${width}`);
  return {height, width, ends};
}

/** Whether pixel (x, y) is inside. */
export function covers({height, width, ends}, x, y) {
  if (x < 0 || y < 0 || x >= width || y >= height) return false;
  const position = x * height + y;
  let low = 0, high = ends.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ends[middle] > position) high = middle;
    else low = middle + 1;
  }
  return low % 2 === 1;
}

/** The mask drawn `width` x `height` pixels large, row by row, 1 inside; edges are smooth where that is larger than the mask. */
export function resample(mask, width, height) {
  const columns = new Uint8Array(mask.width * mask.height);
  for (let run = 1; run < mask.ends.length; run += 2) columns.fill(1, mask.ends[run - 1], mask.ends[run]);
  const drawn = new Uint8Array(width * height);
  const [xs, ys] = [samples(width, mask.width), samples(height, mask.height)];
  for (let x = 0; x < width; x++) {
    const left = xs.first[x] * mask.height, right = xs.second[x] * mask.height, toRight = xs.share[x];
    for (let y = 0; y < height; y++) {
      const top = ys.first[y], bottom = ys.second[y], toBottom = ys.share[y];
      const above = columns[left + top] * (1 - toRight) + columns[right + top] * toRight;
      const below = columns[left + bottom] * (1 - toRight) + columns[right + bottom] * toRight;
      if (above * (1 - toBottom) + below * toBottom >= 0.5) drawn[y * width + x] = 1;
    }
  }
  return drawn;
}

// For each of `count` places on a line of `length` pixels: the two pixels around it, and how far it is on the way to the second.
function samples(count, length) {
  const first = new Uint32Array(count), second = new Uint32Array(count), share = new Float32Array(count);
  for (let index = 0; index < count; index++) {
    const place = Math.min(Math.max((index + 0.5) * length / count - 0.5, 0), length - 1);
    first[index] = Math.floor(place);
    second[index] = Math.min(first[index] + 1, length - 1);
    share[index] = place - first[index];
  }
  return {first, second, share};
}
