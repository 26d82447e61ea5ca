// Which words name which masks. Spans count Unicode code points, JavaScript's strings UTF-16 units.

/** `text` cut where a mask's span begins or ends: `[{text, masks}]`. A mask without words has an empty piece of its own. */
export function toPieces(text, masks) {
  const letters = [...text];
  const places = [...new Set([0, letters.length, ...masks.flatMap((mask) => mask.span)])].sort((a, b) => a - b);
  return places.flatMap((start, index) => {
    const end = places[index + 1];
    const wordless = masks.filter(({span}) => span[0] === start && span[1] === start);
    const pieces = wordless.length ? [{text: "", masks: wordless}] : [];
    if (end === undefined) return pieces;
    const named = masks.filter(({span}) => span[0] <= start && end <= span[1]);
    return [...pieces, {text: letters.slice(start, end).join(""), masks: named}];
  });
}

/** A mask's phrase, or a name for one without words. */
export const labelOf = (mask, index) => mask.label.trim() || `mask ${index + 1}`;
