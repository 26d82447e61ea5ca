// Drawn scenes to try, each with questions that the small model understands. Made by pixellm.data.sources.shapes.

export const EXAMPLES = [
  {file: "scene-96.jpg", alt: "Two circles, a ring, a square and a star", questions: ["What can roll?", "What has a hole?"]},
  {file: "scene-71.jpg", alt: "A square, two triangles and a star", questions: [
    "Show me all that have corners.", "Which of these are not white?"]},
  {file: "scene-67.jpg", alt: "A cross, a ring, a triangle, a circle and a star", questions: [
    "Which of these are not red?", "What can roll?"]},
  {file: "scene-32.jpg", alt: "A star, two rings and a cross", questions: ["Find everything with a hole.", "What is not blue?"]},
];

const FOLDER = new URL("examples/", import.meta.url);

export const urlOf = (example) => new URL(example.file, FOLDER).href;

/** The example as if somebody had chosen its file. */
export async function toFile(example) {
  const response = await fetch(urlOf(example));
  if (!response.ok) throw new Error(`the example ${example.file} answered ${response.status}`);
  return new File([await response.blob()], example.file, {type: "image/jpeg"});
}
