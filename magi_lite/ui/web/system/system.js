// What was found, the plan as a picture, the models on disk and their downloads.
import { NO_ANSWER, answerOf, call, toast } from "../shared/bus.js";
import { askFor, button, buttonRow, el, field, keepInside, openDialog, refill, saveAs, table } from "../shared/dom.js";
import { bytes } from "../shared/format.js";

const HERE = "This computer";

export function mount({ element, props, server, watch }) {
  const root = element.querySelector(".sy"),
    machine = root.querySelector(".sy-machine"),
    models = root.querySelector(".sy-models"),
    picture = root.querySelector(".sy-picture");
  let timer = null,
    visible = false;
  async function refresh() {
    clearTimeout(timer);
    if (!visible || !element.isConnected) return;
    const answer = await call(server.system({}));
    if (answer.machine) draw(answer);
    timer = setTimeout(refresh, answer.models && answer.models.some((m) => m.download) ? 700 : 4000);
  }
  function draw(answer) {
    refill(
      machine,
      table(answer.machine),
      ...answer.advice.map((text) => el("div", { class: "mg-note warning", text })),
      el(
        "div",
        { class: "mg-row", style: "margin-top:12px" },
        button(
          "Free memory",
          "trash",
          async () => {
            const done = await call(server.free_memory({}));
            if (done.message) toast(done.message);
            refresh();
          },
          { class: "mg-fill", action: "free" },
        ),
        button("Report for a bug …", "text", askReport, { class: "mg-fill", action: "report" }),
      ),
    );
    refill(
      models,
      el("p", {
        class: "mg-muted sy-place",
        text: `Folder: ${answer.models_folder}. ${bytes(answer.free_disk)} are free there.`,
      }),
      button("Choose another folder …", "folder", () => askFolder(answer.models_folder), {
        class: "mg-fill",
        action: "models-folder",
      }),
      ...answer.models.map((model) => {
        const d = model.download,
          running = d && d.state === "running";
        return el(
          "div",
          { class: "sy-model" },
          el("div", {}, el("b", { text: model.name }), el("div", { class: "mg-muted", text: model.detail })),
          model.present
            ? el("span", { class: "mg-pill finished", text: model.size ? bytes(model.size) : "Ready" })
            : running
              ? button(
                  "Stop",
                  "stop",
                  async () => {
                    await call(server.stop_download({ model: model.name }));
                    refresh();
                  },
                  { class: "mg-fill", action: "stop-download" },
                )
              : model.downloadable
                ? button(
                    d && d.done ? "Go on" : "Download",
                    "download",
                    async () => {
                      await call(server.download({ model: model.name }));
                      refresh();
                    },
                    { class: "mg-fill", action: "download" },
                  )
                : null,
          d
            ? el(
                "div",
                { style: "grid-column:1/-1" },
                el(
                  "div",
                  { class: "mg-bar thin" },
                  el("i", { style: `width:${d.total ? (100 * d.done) / d.total : 0}%` }),
                ),
                el("div", { class: d.error ? "qu-error" : "mg-muted", role: "status", text: d.error || d.text }),
              )
            : null,
        );
      }),
    );
  }
  // The planner's picture takes the page's text colour, so it stands in the page itself. It is the server's own
  // drawing: it is parsed as XML, and only its shapes and text are taken over.
  const ALLOWED = new Set([
    "svg",
    "g",
    "rect",
    "text",
    "tspan",
    "title",
    "desc",
    "line",
    "path",
    "circle",
    "defs",
    "pattern",
    "style",
  ]);
  function safe(node) {
    if (!ALLOWED.has(node.localName)) return false;
    for (const a of [...node.attributes]) if (/^on|href/i.test(a.name)) node.removeAttribute(a.name);
    for (const child of [...node.children]) if (!safe(child)) child.remove();
    return true;
  }
  // --- another machine
  let planned = 0,
    other = null; // the plan of another machine, in the place of this one's
  const card = el("select", { class: "mg-input", "aria-label": "Plan for" }, el("option", { value: "", text: HERE })),
    model = el(
      "select",
      { class: "mg-input", "aria-label": "Model" },
      el("option", { value: "", text: "Its own choice" }),
    ),
    ram = el("input", { type: "number", class: "mg-input", min: "1", placeholder: "RAM", "aria-label": "RAM in GB" });
  for (const node of [card, model, ram]) keepInside(node).addEventListener("change", planOther);
  root
    .querySelector(".sy-other")
    .append(el("span", { class: "mg-small", text: "Plan for" }), card, model, ram, el("span", { text: "GB of RAM" }));
  async function fillCards() {
    const answer = await call(server.cards({}));
    if (!answer.cards || card.options.length > 1) return;
    card.append(
      el("option", { value: "cpu", text: "No card: the processor" }),
      ...answer.cards.map(({ name, gb }) => el("option", { value: name, text: `${name}, ${gb} GB` })),
    );
    model.append(...answer.models.map((name) => el("option", { value: name, text: name })));
  }
  async function planOther() {
    const asked = (props.value && props.value.asked) || {};
    other = card.value ? { sentence: "Planning …" } : null;
    drawPlan();
    model.disabled = ram.disabled = !card.value;
    if (card.value) {
      const mine = (planned += 1);
      const ram_gb = ram.value === "" ? null : Number(ram.value),
        what = { card: card.value, model: model.value, ram_gb, seconds: asked.seconds },
        answer = await answerOf(server.plan_for(what));
      if (mine !== planned) return; // another one was asked for by now
      other = answer || { error: NO_ANSWER };
    }
    drawPlan();
  }
  model.disabled = ram.disabled = true;

  // --- for a bug report
  async function askReport() {
    const text = el("textarea", { class: "mg-input sy-report", readonly: true, rows: "18", "aria-label": "Report" }),
      paths = el("input", { type: "checkbox", class: "mg-check", "data-action": "with-paths" }),
      box = el("dialog", { class: "mg-dialog wide", "aria-label": "Report for a bug" });
    async function read() {
      const answer = await call(server.report({ with_paths: paths.checked }));
      if (answer.text !== undefined) text.value = answer.text;
    }
    const copy = async () => {
      // there is no clipboard for a page that comes from another computer without encryption
      await (navigator.clipboard ? navigator.clipboard.writeText(text.value) : Promise.reject()).then(
        () => toast("The report is copied."),
        () => text.select(),
      );
    };
    const save = () => saveAs(new Blob([text.value], { type: "text/plain" }), "magi-lite-report.txt");
    paths.addEventListener("change", read);
    box.append(
      el("h3", { text: "Report for a bug" }),
      el("p", {
        class: "mg-muted",
        text: "Versions, this computer, and what the console shows. Nothing is sent anywhere; read it before you do.",
      }),
      text,
      el("label", { class: "mg-row mg-small mg-choice" }, paths, "With paths and names of mine"),
      buttonRow(
        button("Close", null, () => box.close()),
        button("Save", "download", save, { class: "mg-fill" }),
        button("Copy", "copy", copy, { class: "mg-primary", action: "copy-report" }),
      ),
    );
    openDialog(box);
    read();
  }
  function askFolder(now) {
    const folder = el("input", { type: "text", class: "mg-input", value: now, required: true });
    askFor(
      "Folder of the models",
      "A folder on the app's computer, laid out as the models are published. It is remembered.",
      [field("Folder", folder)],
      "Use it",
      async () => {
        const answer = await call(server.use_models_folder({ folder: folder.value }));
        if (!answer.error) refresh();
        return answer;
      },
    );
  }

  /** The drawing's legend as a list that wraps where there is little room; it is taken out of the drawing. */
  function takeLegend(drawing) {
    const squares = [...drawing.querySelectorAll('rect[width="10"][height="10"]')];
    if (!squares.length) return null;
    const top = Math.min(...squares.map((square) => Number(square.getAttribute("y")))),
      [x, y, width] = drawing.getAttribute("viewBox").split(" ");
    const entries = squares.map((square) => {
      const name = square.nextElementSibling,
        mark = el("i", { "aria-hidden": "true" });
      mark.style.background = square.getAttribute("fill");
      const entry = el("li", {}, mark, name.textContent);
      name.remove();
      square.remove();
      return entry;
    });
    drawing.setAttribute("viewBox", [x, y, width, top - 4].join(" "));
    return el("ul", { class: "sy-legend", "aria-label": "Legend" }, ...entries);
  }
  function drawPlan() {
    const value = other || props.value || {},
      kids = [];
    if (value.sentence) kids.push(el("p", { text: value.sentence }));
    if (value.svg) {
      const tree = new DOMParser().parseFromString(value.svg, "image/svg+xml").documentElement;
      if (safe(tree)) {
        const drawing = document.importNode(tree, true),
          legend = takeLegend(drawing);
        const window = { class: "sy-drawing", tabindex: "0", role: "region", "aria-label": "Memory by phase" };
        kids.push(el("div", window, drawing), ...(legend ? [legend] : []));
      }
    }
    for (const note of value.notes || []) kids.push(el("p", { class: "mg-muted", text: note }));
    if (value.error) kids.push(el("div", { class: "mg-note warning", text: value.error }));
    picture.replaceChildren(...kids);
  }
  watch("value", () => (card.value ? planOther() : drawPlan()));
  drawPlan();
  new IntersectionObserver((entries) => {
    visible = entries[0].isIntersecting;
    if (visible && card.options.length < 2) fillCards();
    refresh();
  }).observe(root);
}
