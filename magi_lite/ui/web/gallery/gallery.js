// Every video that was made, newest first. A click opens its player, its settings and what can be done with it.
import { call, emit, on } from "../shared/bus.js";
import { button, el } from "../shared/dom.js";
import { icon } from "../shared/icons.js";

export function mount({ element, props, trigger, server }) {
  const root = element.querySelector(".ga"),
    grid = root.querySelector(".ga-grid"),
    none = root.querySelector(".mg-empty");
  let version = null,
    visible = false,
    items = [];
  none.append(icon("image"), el("div", { text: "No videos yet. The first one you make appears here." }));

  async function refresh() {
    const answer = await call(server.gallery({}));
    if (!answer.videos) return;
    items = answer.videos;
    root.querySelector(".ga-folder").textContent = answer.folder;
    none.hidden = items.length > 0;
    grid.replaceChildren(
      ...items.map((item) =>
        el(
          "button",
          { type: "button", class: "ga-item", "data-video": item.id, onclick: () => open(item) },
          el("span", { class: "ga-thumb", style: item.thumbnail && `background-image:url("${item.thumbnail}")` }),
          el(
            "span",
            { class: "ga-caption" },
            el("span", { class: "ga-title", text: item.title }),
            " ",
            el("span", { class: "mg-muted", text: item.summary }),
          ),
        ),
      ),
    );
  }
  async function open(item) {
    const detail = await call(server.details({ video: item.id }));
    if (detail.error) return;
    const box = el("dialog", { class: "mg-dialog wide", "aria-label": item.title });
    const close = () => box.close();
    const go = (name, value) => {
      props.value = value;
      trigger(name);
      close();
    };
    const film = detail.video_url
      ? el("video", {
          src: detail.video_url,
          controls: true,
          muted: true,
          loop: true,
          autoplay: true,
          playsInline: true,
          "aria-label": item.title,
        })
      : el("div", { class: "mg-note warning", text: "No second of this video is finished." });
    const start = async (promise) => {
      const answer = await call(promise);
      if (answer.error) return;
      emit("show", { job: answer.job, open: true });
      close();
    };
    const second = el("input", {
      type: "number",
      class: "mg-input",
      min: "0",
      max: String(Math.max(0, detail.done - 1)),
      step: "1",
      value: "0",
      "aria-label": "Second to redo from",
    });
    const prompt = el("input", {
      type: "text",
      class: "mg-input mg-grow",
      placeholder: "new prompt (empty: the same)",
      "aria-label": "New prompt",
    });
    const seed = el("input", {
      type: "number",
      class: "mg-input",
      min: "0",
      step: "1",
      placeholder: "seed",
      "aria-label": "New seed",
    });
    const ask = button(
      "Delete",
      "trash",
      () => {
        sure.hidden = false;
        ask.hidden = true;
        sureYes.focus();
      },
      { class: "mg-danger", action: "delete" },
    );
    const sureYes = button(
      "Delete for good",
      "trash",
      async () => {
        const answer = await call(server.delete_video({ video: item.id }));
        if (!answer.error) {
          close();
          refresh();
        }
      },
      { class: "mg-danger", action: "delete-sure" },
    );
    const sure = el(
      "span",
      { class: "mg-row", hidden: true },
      el("span", { class: "mg-small", text: "Delete this video? It cannot be extended or redone afterwards." }),
      sureYes,
      button("Keep", null, () => {
        sure.hidden = true;
        ask.hidden = false;
      }),
    );
    const has = detail.done > 0;
    box.append(
      el(
        "div",
        { class: "mg-head" },
        el("h3", { text: item.title }),
        button("Close", "close", close, { iconOnly: true }),
      ),
      el(
        "div",
        { class: "ga-dialog" },
        el("div", {}, film, el("p", { class: "mg-muted", text: detail.place })),
        el(
          "div",
          {},
          el(
            "div",
            { class: "mg-row" },
            button("Use these settings", "check", () => go("use_settings", { use: item.id }), {
              class: "mg-primary",
              action: "use",
            }),
            has
              ? button("Continue from here", "add", () => start(server.extend({ video: item.id, seconds: 2 })), {
                  class: "mg-fill",
                  action: "continue",
                  title: "Two more seconds, from the saved latents",
                })
              : null,
            detail.resumable
              ? button("Resume", "play", () => start(server.resume({ job: item.id })), {
                  class: "mg-fill",
                  action: "resume",
                })
              : null,
            button("Reveal file", "folder", () => call(server.reveal({ video: item.id })), {
              class: "mg-fill",
              action: "reveal",
            }),
          ),
          has
            ? el(
                "div",
                { class: "mg-row", style: "margin-top:12px" },
                el("span", { class: "mg-small", text: "Redo from second" }),
                second,
                prompt,
                seed,
                button(
                  "Redo",
                  "branch",
                  () =>
                    start(
                      server.redo({
                        video: item.id,
                        second: Number(second.value),
                        prompt: prompt.value.trim(),
                        seed: seed.value === "" ? null : Number(seed.value),
                      }),
                    ),
                  { class: "mg-fill", action: "redo" },
                ),
              )
            : null,
          el(
            "div",
            { class: "ga-settings", tabindex: "0", role: "region", "aria-label": "Settings of this video" },
            el(
              "table",
              { class: "mg-table" },
              el(
                "tbody",
                {},
                ...detail.settings.map(([name, value]) =>
                  el("tr", {}, el("th", { scope: "row", text: name }), el("td", { text: value })),
                ),
              ),
            ),
          ),
          el("div", { class: "mg-row" }, ask, sure),
        ),
      ),
    );
    for (const name of ["change", "input"]) box.addEventListener(name, (event) => event.stopPropagation());
    box.addEventListener("close", () => box.remove());
    document.querySelector(".gradio-container").append(box);
    box.showModal();
  }
  new IntersectionObserver((entries) => {
    visible = entries[0].isIntersecting;
    if (visible) refresh();
  }).observe(root);
  on(element, "state", (state) => {
    if (state.gallery !== version) {
      version = state.gallery;
      if (visible) refresh();
    }
  });
}
