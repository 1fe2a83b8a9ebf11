// Pictures and clips of kinds that this browser cannot draw, such as TIFF: the app draws them, small.
import { answerOf } from "./bus.js";
import { el } from "./dom.js";

/**
 * Let the app draw the file at `path` where `node`, an image or a video, fails to.
 *
 * @param server its function `drawn`.
 */
export function drawable(node, path, server) {
  node.addEventListener("error", () => redraw(node, path, server), { once: true });
  return node;
}

/** Show what the app draws of a file; where it cannot either (the file is gone), `node` stays as it is. */
export async function redraw(node, path, server) {
  const src = node.getAttribute("src");
  if (src.startsWith("data:")) return;
  const answer = await answerOf(server.drawn({ path }));
  if (!answer || !answer.url || node.getAttribute("src") !== src) return; // another file is shown by now
  if (node.tagName === "IMG") node.setAttribute("src", answer.url);
  else node.replaceWith(el("img", { src: answer.url, alt: node.getAttribute("aria-label") }));
}
