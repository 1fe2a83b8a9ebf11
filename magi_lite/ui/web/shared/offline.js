// While the app does not answer, what needs it is switched off, and a line says so.
import { on } from "./bus.js";
import { el } from "./dom.js";

const NEEDS_SERVER =
  "[data-server], #mg-generate, #mg-save-edit, #mg-download-first, #mg-save, #mg-rename-saved, #mg-delete-saved, " +
  "#mg-at-start, #mg-last-seed, .qu button, .sy button, .ga-dialog button, dialog button[type=submit], " +
  // their answers set other fields
  "#mg-quality input, #mg-shape input, #mg-preset input, #mg-model input, #mg-example input, #mg-saved input";

export function mountOffline(element) {
  const banner = el("div", { class: "mg-offline", role: "alert", hidden: true });
  element.querySelector(".tb").after(banner);
  on(element, "offline", (off) => {
    banner.hidden = !off;
    banner.textContent = off
      ? "The app does not answer. Nothing is lost: this page keeps what you typed and connects again by itself."
      : "";
    const switched = off
      ? [...document.querySelectorAll(NEEDS_SERVER)].filter((node) => !node.disabled)
      : [...document.querySelectorAll("[data-offline]")];
    for (const node of switched) {
      node.disabled = off;
      node.toggleAttribute("data-offline", off);
    }
  });
}
