// The page: puts photo, conversation and masks together, and listens to people.

import {listModels} from "./api.js";
import {showCode} from "./code.js";
import {Conversation} from "./conversation.js";
import {save, toCoco, toOverlay} from "./downloads.js";
import {EXAMPLES, toFile, urlOf} from "./examples.js";
import {PhotoError, pictureIn, readPhoto} from "./photo.js";
import {Stage} from "./stage.js";
import {Transcript, element} from "./transcript.js";

const byId = (id) => document.getElementById(id);
const KEY_PLACE = "pixellm-key"; // in the tab's own storage, gone with it

let models = [];
let suggestions = [];
let selected = null; // the turn whose masks are on the photo
let hover = {turn: null, masks: []};
let pinned = {turn: null, masks: []};

const conversation = new Conversation(onNews, findAccess);
const stage = new Stage(byId("frame"), {
  onPoint: (mask) => setHover(selected, mask ? [mask] : []),
  onPick: (mask) => setPinned(selected, mask ? [mask] : []),
});
const transcript = new Transcript(byId("transcript"), {
  onLight: setHover,
  onPin: setPinned,
  onToggle(turn, mask) {
    mask.isShown = !mask.isShown;
    setHover(turn, mask.isShown ? [mask] : []); // what was just switched off is not to stand out because the pointer is still there
  },
  onSelect(turn) {
    selected = turn;
    render();
  },
  onAgain: (turn) => conversation.again(turn),
  onCode: (turn) => showCode(byId("code"), {photo: conversation.photo, turns: conversation.turnsBefore(turn), question: turn.question,
                                            model: turn.model, isOneOfMany: models.length > 1, hasKey: Boolean(byId("key").value)}),
});

function setHover(turn, masks) {
  hover = {turn, masks};
  render();
}

function setPinned(turn, masks) {
  const isSame = masks.length === pinned.masks.length && masks.every((mask) => pinned.masks.includes(mask));
  pinned = isSame ? {turn: null, masks: []} : {turn, masks};
  if (turn) selected = turn;
  render();
  document.querySelector("#transcript .lit")?.scrollIntoView({block: "nearest"});
}

function onNews(turn) {
  if (!conversation.turns.includes(turn)) return; // of a photo that is gone
  selected = turn;
  if (turn.status === "asking") say("Asking.");
  if (turn.status === "done") say(`Answer: ${turn.text} ${turn.masks.length} ${turn.masks.length === 1 ? "mask" : "masks"}.`);
  if (turn.error?.status === 401) byId("key-field").hidden = false;
  if (turn.error?.code === "model_not_found") models = []; // the server has others now
  render();
  if (turn.status !== "answering" && turn.status !== "waiting") byId("transcript").lastElementChild.scrollIntoView({block: "end"});
}

function render() {
  const {masks: lit, turn: litTurn} = hover.masks.length ? hover : pinned;
  const shown = lit.length ? litTurn : selected;
  transcript.render(conversation.turns, lit, shown);
  stage.show(shown?.masks ?? [], lit);
  const {photo, isBusy} = conversation;
  document.body.classList.toggle("has-photo", Boolean(photo));
  byId("empty").hidden = Boolean(photo);
  byId("view").hidden = !photo;
  byId("send").disabled = !photo || isBusy || !byId("question").value.trim();
  byId("send").hidden = isBusy;
  byId("stop").hidden = !isBusy;
  byId("hint").textContent = !photo ? "Choose a photo first." : "Enter asks, Shift and Enter begin a new line.";
  byId("question-label").textContent = conversation.turns.length ? "Your next question about this photo" : "Your question";
  for (const id of ["save-png", "save-coco"]) byId(id).disabled = !selected?.masks.length;
  byId("suggestions").hidden = !photo || isBusy || !suggestions.length;
}

const say = (text) => (byId("spoken").textContent = text);

async function takePhoto(file, questions = []) {
  if (!file) return;
  refusePhoto("");
  try {
    const photo = await readPhoto(file);
    if (conversation.photo) URL.revokeObjectURL(conversation.photo.url);
    conversation.start(photo);
    stage.setPhoto(photo);
  } catch (error) {
    if (!(error instanceof PhotoError)) throw error;
    return refusePhoto(error.message);
  }
  reset(questions);
  say(`The photo ${conversation.photo.name} is ready. Ask about it.`);
  if (matchMedia("(pointer: fine)").matches) byId("question").focus(); // on a phone this would open the keyboard over the photo
}

function refusePhoto(reason) {
  byId("photo-problem").textContent = reason;
  byId("photo-problem").hidden = !reason;
}

function reset(questions) {
  [selected, hover, pinned, suggestions] = [null, {turn: null, masks: []}, {turn: null, masks: []}, questions];
  byId("suggestions").replaceChildren(...questions.map((question) => {
    const button = element("button", {className: "suggestion", type: "button"}, question);
    button.addEventListener("click", () => {
      suggestions = suggestions.filter((each) => each !== question);
      button.remove();
      ask(question);
    });
    return button;
  }));
  render();
}

function ask(question) {
  if (!conversation.photo || conversation.isBusy || !question.trim()) return;
  pinned = {turn: null, masks: []};
  conversation.ask(question.trim());
}

async function findAccess() {
  const key = byId("key").value;
  if (!models.length) {
    models = await listModels(key);
    byId("model").replaceChildren(...models.map((name) => element("option", {}, name)));
    byId("model-choice").hidden = models.length < 2;
  }
  return {model: byId("model").value, key};
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = byId("question").value;
  if (byId("send").disabled) return;
  byId("question").value = "";
  ask(question);
});
byId("question").addEventListener("input", render);
byId("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("ask").requestSubmit();
});
byId("stop").addEventListener("click", () => {
  conversation.stop();
  byId("question").focus();
});
byId("opacity").addEventListener("input", ({target}) => {
  target.setAttribute("aria-valuetext", `${target.value} %`);
  stage.opacity = target.value / 100;
});
byId("save-png").addEventListener("click", async () => {
  save(await toOverlay(stage.image, selected.masks, stage.opacity), conversation.photo.name, "-masks.png");
});
byId("save-coco").addEventListener("click", () => {
  save(toCoco(conversation.photo, selected), conversation.photo.name, "-coco.json");
});
byId("new-photo").addEventListener("click", () => {
  conversation.start(null);
  reset([]);
  byId("file").focus();
});
for (const id of ["file", "camera"]) {
  byId(id).addEventListener("change", ({target}) => {
    takePhoto(target.files[0]);
    target.value = "";
  });
}
byId("key").value = sessionStorage.getItem(KEY_PLACE) ?? "";
byId("key").addEventListener("change", ({target}) => sessionStorage.setItem(KEY_PLACE, target.value));

document.addEventListener("paste", (event) => takePhoto(pictureIn(event.clipboardData)));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("drop-here").hidden = false;
});
document.addEventListener("dragleave", (event) => (byId("drop-here").hidden = event.relatedTarget === null));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop-here").hidden = true;
  takePhoto(pictureIn(event.dataTransfer));
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || byId("code").open) return;
  pinned = {turn: null, masks: []};
  setHover(null, []);
});

byId("examples").append(...EXAMPLES.map((example) => {
  const button = element("button", {type: "button"}, element("img", {src: urlOf(example), alt: example.alt, width: 96, height: 96}));
  button.addEventListener("click", () => toFile(example).then((file) => takePhoto(file, example.questions),
                                                               () => refusePhoto("The server cannot be reached. Check the connection.")));
  return element("li", {}, button);
}));
render();
findAccess().catch((error) => (byId("key-field").hidden = error.status !== 401));
