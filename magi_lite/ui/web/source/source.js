// Drop, paste or choose an image or a clip, anywhere on the page. The server looks at what it really is and answers
// with its kind, or with one sentence. The value is {kind, path, name, ...} or null.
import { NO_ANSWER, emit, on, onDocument, toast } from "../shared/bus.js";
import { askFor, button, el, keepInside } from "../shared/dom.js";
import { bytes, count } from "../shared/format.js";
import { icon } from "../shared/icons.js";
import { drawable } from "../shared/pictures.js";

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
        drawable(pictured(value), value.path, server),
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
          el("span", {
            class: "so-more",
            text: "The first frame, a clip to continue, or several images: a video from each.",
          }),
        ),
      );
    drop.replaceChildren(...kids);
    const old = root.querySelector(".so-remove");
    if (old) old.remove();
    if (!busy && value && value.kind) drop.after(button("Remove", "close", clear, { class: "so-remove" }));
  }
  const pictured = (value) =>
    value.kind === "image"
      ? el("img", { src: value.url, alt: "The image to start from" })
      : el("video", {
          src: value.url,
          muted: true,
          autoplay: true,
          loop: true,
          playsInline: true,
          "aria-label": "The clip to continue",
        });
  function clear() {
    props.value = null;
    error.textContent = "";
    trigger("cleared");
    draw();
  }
  /** Send a file to the app; what the server says of it: {source} or {error}. */
  async function read(file) {
    if (file.size > props.limit)
      return { error: `${file.name} is larger than ${bytes(props.limit)}; use a shorter or smaller file.` };
    try {
      const { path } = file.size ? await upload(file) : { path: null };
      const answer = path
        ? await server.look_at({ path, name: file.name })
        : { error: `${file.name} is empty (0 bytes); choose another file.` };
      return answer || { error: NO_ANSWER };
    } catch {
      const limit = bytes(props.limit);
      return { error: `${file.name} could not be sent to the app. Is the app running and the file below ${limit}?` };
    }
  }
  function isFree() {
    if (busy) toast(`${busy} is still being read; add the next file after that.`, "error");
    return !busy;
  }
  /** @param taken called when the file is what the next video starts from. */
  async function take(file, taken = () => {}) {
    if (!file || !isFree()) return;
    error.textContent = "";
    busy = file.name;
    draw();
    const answer = await read(file);
    busy = null;
    if (answer.error) {
      error.textContent = answer.error;
      bringToView();
    } else {
      props.value = answer.source;
      trigger("dropped");
      taken();
    }
    draw();
  }
  /** Several pictures: one video from each, with the form's settings, if that is what is wanted. */
  async function takeSeveral(files) {
    if (!isFree()) return;
    error.textContent = "";
    const found = [],
      refused = [];
    for (const [i, file] of files.entries()) {
      busy = `${file.name} (${i + 1} of ${files.length})`;
      draw();
      const answer = await read(file);
      if (answer.error) refused.push(answer.error);
      else if (answer.source.kind !== "image") refused.push(`${file.name} is no picture; drop clips one at a time.`);
      else found.push(answer.source);
    }
    busy = null;
    draw();
    error.textContent = refused.join(" ");
    if (!found.length) return;
    const videos = count(found.length, "video"),
      intro = `Make ${videos}, one from each picture, with the prompt and the settings of the form?`,
      pictures = found.map((one) => drawable(el("img", { src: one.url, alt: one.name }), one.path, server));
    askFor("Several pictures", intro, [el("div", { class: "so-several" }, ...pictures)], `Make ${videos}`, () => {
      emit("several", found);
      return {};
    });
  }
  const isTimeline = (file) => file && /\.(srt|otio|json|txt)$/i.test(file.name);
  /** Files may be dropped anywhere: what becomes of them is seen here. */
  function bringToView() {
    if (root.offsetParent === null) document.querySelector("[role=tab][data-tab-id=create]").click();
    requestAnimationFrame(() => root.scrollIntoView({ block: "nearest" }));
  }
  function takeAll(files) {
    error.textContent = "";
    bringToView();
    if (files.length > 1) takeSeveral([...files]);
    else if (isTimeline(files[0])) emit("timeline-file", files[0]);
    else take(files[0]);
  }
  drop.addEventListener("click", () => {
    input.value = "";
    input.click();
  });
  drop.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      drop.click();
    }
  });
  keepInside(input).addEventListener("change", () => takeAll(input.files));
  /** Whether a file is dragged over the page, and not over what takes it itself, such as a block. */
  const isOurs = (event) =>
    !event.defaultPrevented && Boolean(event.dataTransfer) && [...event.dataTransfer.types].includes("Files");
  onDocument(element, "dragover", (event) => {
    const ours = isOurs(event);
    drop.classList.toggle("over", ours);
    if (ours) event.preventDefault();
  });
  onDocument(element, "dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  onDocument(element, "drop", (event) => {
    drop.classList.remove("over");
    if (isOurs(event)) {
      event.preventDefault();
      takeAll(event.dataTransfer.files);
    }
  });
  onDocument(element, "paste", (event) => {
    const files = event.clipboardData ? event.clipboardData.files : [];
    if (files.length) {
      event.preventDefault();
      takeAll(files);
    }
  });
  on(element, "take", ({ file, taken }) => take(file, taken));
  watch("value", draw);
  draw();
}
