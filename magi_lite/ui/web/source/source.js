// Drop, paste or choose an image or a clip, anywhere on the page. The server looks at what it really is and answers
// with its kind, or with one sentence. The value is {kind, path, name, ...} or null.
import { NO_ANSWER, on, onDocument } from "../shared/bus.js";
import { button, el, keepInside } from "../shared/dom.js";
import { bytes } from "../shared/format.js";
import { icon } from "../shared/icons.js";

export function mount({ element, props, trigger, server, watch, upload }) {
  const root = element.querySelector(".so"),
    drop = root.querySelector(".so-drop"),
    input = root.querySelector("input"),
    error = root.querySelector(".so-error");
  let busy = null;

  function draw() {
    const value = props.value,
      kids = [];
    drop.classList.toggle("filled", Boolean(value && value.kind));
    if (busy) kids.push(icon("upload"), el("span", { class: "so-text", text: `Reading ${busy} …` }));
    else if (value && value.kind) {
      kids.push(
        value.kind === "image"
          ? el("img", { src: value.url, alt: "The image to start from" })
          : el("video", {
              src: value.url,
              muted: true,
              autoplay: true,
              loop: true,
              playsInline: true,
              "aria-label": "The clip to continue",
            }),
        el(
          "span",
          { class: "so-text" },
          el("span", { class: "so-name", text: value.name }),
          el("span", { text: value.info }),
        ),
      );
    } else
      kids.push(
        icon("image"),
        el(
          "span",
          { class: "so-text" },
          el("b", { text: "Drop or paste an image or a clip" }),
          el("br"),
          "An image is the first frame; a clip is continued.",
        ),
      );
    drop.replaceChildren(...kids);
    const old = root.querySelector(".so-remove");
    if (old) old.remove();
    if (!busy && value && value.kind) drop.after(button("Remove", "close", clear, { class: "so-remove" }));
  }
  function clear() {
    props.value = null;
    error.textContent = "";
    trigger("cleared");
    draw();
  }
  async function take(file) {
    if (!file || busy) return;
    error.textContent = "";
    const refuse = (sentence) => {
      error.textContent = sentence;
    };
    if (file.size > props.limit) {
      refuse(`${file.name} is larger than ${bytes(props.limit)}; use a shorter or smaller file.`);
      return;
    }
    busy = file.name;
    draw();
    let answer;
    try {
      const { path } = file.size ? await upload(file) : { path: null };
      answer = path
        ? await server.look_at({ path, name: file.name })
        : { error: `${file.name} is empty (0 bytes); choose another file.` };
    } catch {
      const limit = bytes(props.limit);
      answer = { error: `${file.name} could not be sent to the app. Is the app running and the file below ${limit}?` };
    }
    answer = answer || { error: NO_ANSWER };
    busy = null;
    if (answer.error) {
      refuse(answer.error);
      draw();
      return;
    }
    props.value = answer.source;
    trigger("dropped");
    draw();
  }
  drop.addEventListener("click", () => {
    input.value = "";
    input.click();
  });
  drop.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      input.click();
    }
  });
  keepInside(input).addEventListener("change", () => take(input.files[0]));
  const hasFile = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
  onDocument(element, "dragover", (event) => {
    if (hasFile(event)) {
      event.preventDefault();
      drop.classList.add("over");
    }
  });
  onDocument(element, "dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  onDocument(element, "drop", (event) => {
    drop.classList.remove("over");
    if (hasFile(event)) {
      event.preventDefault();
      take(event.dataTransfer.files[0]);
    }
  });
  onDocument(element, "paste", (event) => {
    const file = [...(event.clipboardData ? event.clipboardData.files : [])][0];
    if (file) {
      event.preventDefault();
      take(file);
    }
  });
  on(element, "take", take);
  watch("value", draw);
  draw();
}
