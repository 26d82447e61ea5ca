// The dialog that shows how to ask the same from code.

import {toCurl, toPython} from "./snippets.js";

/** Opens `dialog` with what was asked: `{photo, turns, question, model, isOneOfMany, hasKey}`, where `turns` are those before it. */
export function showCode(dialog, asked) {
  dialog.querySelector("#curl").textContent = toCurl(asked);
  dialog.querySelector("#python").textContent = toPython(asked);
  for (const button of dialog.querySelectorAll(".copy")) {
    const name = button.textContent.replace("Copied", "Copy");
    button.textContent = name;
    button.onclick = async () => {
      const source = dialog.querySelector(`#${button.dataset.from}`);
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = name.replace("Copy", "Copied");
      } catch { // no clipboard over plain HTTP from another machine: mark the text, so that the keyboard can copy it
        getSelection().selectAllChildren(source);
      }
    };
  }
  dialog.showModal();
}
