// One video whole: its player, its name, its versions, its settings, and what can be done with it.
import { app, call, emit } from "../shared/bus.js";
import { button, el, field, oneAtATime, openDialog, table } from "../shared/dom.js";
import { askExport } from "../shared/export.js";

/** @param scope the panel's {server, upload}. @param acts {use(id), changed(), throwAway(ids)}: what follows. */
async function show(scope, item, acts) {
  const { server } = scope;
  const [detail, family] = await Promise.all([
    call(server.details({ video: item.id })),
    call(server.versions({ video: item.id })),
  ]);
  if (detail.error) return;
  const box = el("dialog", { class: "mg-dialog wide", "aria-label": detail.title }),
    close = () => box.close(),
    has = detail.done > 0;
  let starting = false; // a second click while the answer is on its way would make a second video
  const start = async (ask) => {
    if (starting) return;
    starting = true;
    const answer = await call(ask());
    starting = false;
    if (answer.error) return;
    emit("show", { job: answer.job, open: true });
    close();
  };
  const film = has
    ? el("video", {
        src: detail.video_url,
        controls: true,
        muted: true,
        loop: true,
        autoplay: true,
        playsInline: true,
        "aria-label": detail.title,
      })
    : el("div", { class: "mg-note warning", text: "No second of this video is finished." });

  // --- name and star
  const name = el("input", {
    type: "text",
    class: "mg-input ga-name",
    value: detail.name,
    placeholder: detail.title,
    maxlength: "120",
    "aria-label": "Name of this video",
  });
  const rename = async () => {
    if (name.value.trim() === detail.name) return;
    const answer = await call(server.label({ video: item.id, name: name.value }));
    if (answer.error) return;
    detail.name = answer.name;
    acts.changed();
  };
  name.addEventListener("blur", rename);
  name.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      event.preventDefault();
      rename();
    }
  });
  const star = button("Star", "star", () => setStar(!detail.starred), { iconOnly: true, action: "star-this" });
  function drawStar() {
    star.classList.toggle("on", detail.starred);
    star.setAttribute("aria-pressed", String(detail.starred));
  }
  async function setStar(starred) {
    const answer = await call(server.label({ video: item.id, starred }));
    if (answer.error) return;
    detail.starred = answer.starred;
    drawStar();
    acts.changed();
  }
  star.classList.add("ga-star", "inline");
  drawStar();

  // --- versions
  const versions = family.versions || [];
  const main = versions.some((one) => one.main) ? versions.find((one) => one.main).name : null;
  const list =
    versions.length > 1
      ? el(
          "ul",
          { class: "ga-versions", "aria-label": "Versions of this video" },
          ...versions.map((one, i) => {
            const name = one.label || (i ? `Version ${i + 1}` : "First version"),
              label = name + (one.from === null ? "" : `, from second ${one.from}`),
              mine = one.name === item.id;
            return el(
              "li",
              {},
              mine
                ? el("b", { text: label })
                : button(label, null, () => {
                    close();
                    openDetail(scope, { id: one.name }, acts);
                  }),
              el("span", { class: "mg-muted", text: one.name === main ? "goes on" : "" }),
            );
          }),
        )
      : null;
  const goesOn = button(
    "Make it the one that goes on",
    "check",
    async () => {
      const answer = await call(server.label({ video: item.id, main: true }));
      if (answer.error) return;
      acts.changed();
      close();
    },
    {
      class: "mg-fill",
      action: "main",
      disabled: main === item.id,
      title: "It stands for all versions in the gallery",
    },
  );

  // --- redo
  const number = (label, extra) =>
    el("input", { type: "number", class: "mg-input", min: "0", step: "1", "aria-label": label, ...extra });
  const second = number("Second to redo from", { max: String(Math.max(0, detail.done - 1)), value: "0" });
  const seed = number("New seed", { placeholder: "seed" });
  const prompt = el("input", {
    type: "text",
    class: "mg-input mg-grow",
    placeholder: "new prompt, or the same",
    "aria-label": "New prompt",
  });
  second.required = true;
  const redo = () => {
    if (!second.reportValidity() || !seed.reportValidity()) return;
    start(() =>
      server.redo({
        video: item.id,
        second: Number(second.value),
        prompt: prompt.value.trim(),
        seed: seed.value === "" ? null : Number(seed.value),
      }),
    );
  };

  /** Bring the video to the stage, under its job where it has one, so that one in the making goes on there. */
  const open = () => {
    const job = ((app.state && app.state.jobs) || []).find((one) => one.project === item.id);
    emit("show", { job: job ? job.id : item.id, open: true });
    close();
  };
  const buttons = [
    button("Open", "play", open, {
      class: "mg-primary",
      action: "open",
      title: "Show it on the stage, with its versions and its timeline",
    }),
    button("Use these settings", "check", () => (acts.use(item.id), close()), {
      class: "mg-fill",
      action: "use",
      title: "Fill the form with them, for another video",
    }),
    has &&
      button("Continue from here", "add", () => start(() => server.extend({ video: item.id, seconds: 2 })), {
        class: "mg-fill",
        action: "continue",
        title: "Two more seconds, from the saved latents",
      }),
    detail.resumable &&
      button("Resume", "play", () => start(() => server.resume({ job: item.id })), {
        class: "mg-fill",
        action: "resume",
      }),
    has &&
      button("Export …", "download", () => askExport(scope, item.id, detail), { class: "mg-fill", action: "export" }),
    button("Reveal file", "folder", () => call(server.reveal({ video: item.id })), {
      class: "mg-fill",
      action: "reveal",
    }),
    button("Move to the bin", "trash", () => (acts.throwAway([item.id]), close()), {
      class: "mg-danger",
      action: "delete",
    }),
  ];
  box.append(
    el(
      "div",
      { class: "mg-head" },
      el("h3", { text: detail.title }),
      star,
      button("Close", "close", close, { iconOnly: true }),
    ),
    el(
      "div",
      { class: "ga-dialog" },
      el("div", {}, film, el("p", { class: "mg-muted ga-place", text: detail.place })),
      el(
        "div",
        {},
        field("Name", name),
        el("div", { class: "mg-row" }, ...buttons),
        list,
        list && el("div", { class: "mg-row" }, goesOn),
        has &&
          el(
            "div",
            { class: "mg-row ga-redo" },
            el("span", { class: "mg-small", text: "Redo from second" }),
            second,
            prompt,
            seed,
            button("Redo", "branch", redo, { class: "mg-fill", action: "redo" }),
          ),
        el(
          "div",
          { class: "ga-settings", tabindex: "0", role: "region", "aria-label": "Settings of this video" },
          table(detail.settings),
        ),
      ),
    ),
  );
  box.addEventListener("close", () => {
    rename();
    if (has) {
      film.removeAttribute("src");
      film.load();
    }
  });
  openDialog(box);
}

export const openDetail = oneAtATime(show);
