// What was found, the plan as a picture, the models on disk and their downloads.
import { call, toast } from "../shared/bus.js";
import { button, el } from "../shared/dom.js";
import { bytes } from "../shared/format.js";

export function mount({ element, props, server, watch }) {
  const root = element.querySelector(".sy"),
    machine = root.querySelector(".sy-machine"),
    models = root.querySelector(".sy-models"),
    picture = root.querySelector(".sy-picture");
  let timer = null,
    visible = false;
  const table = (rows) =>
    el(
      "table",
      { class: "mg-table" },
      el(
        "tbody",
        {},
        ...rows.map(([name, value]) => el("tr", {}, el("th", { scope: "row", text: name }), el("td", { text: value }))),
      ),
    );
  async function refresh() {
    clearTimeout(timer);
    if (!visible || !element.isConnected) return;
    const answer = await call(server.system({}));
    if (answer.machine) draw(answer);
    timer = setTimeout(refresh, answer.models && answer.models.some((m) => m.download) ? 700 : 4000);
  }
  function draw(answer) {
    machine.replaceChildren(
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
      ),
    );
    models.replaceChildren(
      el("p", {
        class: "mg-muted sy-place",
        text: `Folder: ${answer.models_folder}. ${bytes(answer.free_disk)} are free there.`,
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
  function drawPlan() {
    const value = props.value || {},
      kids = [];
    if (value.sentence) kids.push(el("p", { text: value.sentence }));
    if (value.svg) {
      const tree = new DOMParser().parseFromString(value.svg, "image/svg+xml").documentElement;
      if (safe(tree)) kids.push(document.importNode(tree, true));
    }
    for (const note of value.notes || []) kids.push(el("p", { class: "mg-muted", text: note }));
    if (value.error) kids.push(el("div", { class: "mg-note warning", text: value.error }));
    picture.replaceChildren(...kids);
  }
  watch("value", drawPlan);
  drawPlan();
  new IntersectionObserver((entries) => {
    visible = entries[0].isIntersecting;
    refresh();
  }).observe(root);
}
