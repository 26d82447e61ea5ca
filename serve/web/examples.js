// Drawn scenes to try, each with questions that the small model understands. Made by pixellm.data.sources.shapes.

export const EXAMPLES = [
  {file: "scene-10.jpg", alt: "Three rings and a triangle", questions: ["Show me all that have a hole.", "What has corners?"]},
  {file: "scene-6.jpg", alt: "Circles, a ring, a cross, a square and a triangle", questions: [
    "Show me all that are not yellow.", "Where is the largest one and the one behind it?"]},
  {file: "scene-12.jpg", alt: "Squares, triangles, a star and a ring", questions: ["Which of these are green?", "What can roll?"]},
  {file: "scene-14.jpg", alt: "Rings, stars, a cross and a triangle", questions: [
    "Which of these are not blue?", "Which is the largest one and which is the smallest one?"]},
];

const FOLDER = new URL("examples/", import.meta.url);

export const urlOf = (example) => new URL(example.file, FOLDER).href;

/** The example as if somebody had chosen its file. */
export async function toFile(example) {
  const response = await fetch(urlOf(example));
  if (!response.ok) throw new Error(`the example ${example.file} answered ${response.status}`);
  return new File([await response.blob()], example.file, {type: "image/jpeg"});
}
