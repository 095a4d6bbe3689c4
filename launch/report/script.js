"use strict";
for (const bar of document.querySelectorAll(".switch")) {
  bar.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    for (const other of button.parentElement.children) other.setAttribute("aria-pressed", String(other === button));
    const choice = {};
    for (const pressed of bar.querySelectorAll("[aria-pressed=true]")) choice[pressed.dataset.key] = pressed.dataset.value;
    for (const panel of document.querySelectorAll(`[data-panel=${bar.dataset.for}]`)) {
      panel.hidden = Object.entries(choice).some(([key, value]) => panel.dataset[key] !== value);
    }
  });
}
