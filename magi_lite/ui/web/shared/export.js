// A video as a file of another format: what is asked for, and the list of exports with their progress.
import { call, toast } from "./bus.js";
import { button, buttonRow, el, field, oneAtATime, openDialog, refill } from "./dom.js";
import { bytes } from "./format.js";

const ASK_EVERY = 700; // milliseconds
const KINDS = { video: "Videos", animation: "Animations", pictures: "A picture for every frame", frame: "One picture" };

/**
 * The dialog of exports.
 *
 * @param server the panel's functions. @param upload sends a file to the app.
 * @param id the video's name in the gallery. @param video {done, width, height, continues}, and of one on the stage
 * {range, time}: the part that plays in a loop, or null, and the moment that is shown.
 */
async function ask({ server, upload }, id, video) {
  const answer = await call(server.exports({}));
  if (answer.error) return;
  const fits = (format) => Math.min(video.width, video.height) >= format.least;
  const groups = Object.entries(KINDS).map(([kind, label]) =>
    el(
      "optgroup",
      { label },
      ...answer.formats
        .filter((format) => format.kind === kind)
        .map((format) => {
          const why = fits(format) ? "" : ` (from ${format.least} × ${format.least} on)`;
          return el("option", { value: format.name, text: format.summary + why, disabled: !fits(format) });
        }),
    ),
  );
  const format = el("select", { class: "mg-input", "data-field": "format" }, ...groups),
    number = (value) =>
      el("input", { type: "number", class: "mg-input", min: "0", max: String(video.done), step: "any", value }),
    { range = null, time = 0 } = video,
    short = (seconds) => String(Math.round(seconds * 1000) / 1000),
    from = number("0"),
    to = number(short(range ? range.to : video.done)),
    settings = el("input", { type: "checkbox", class: "mg-check", checked: true }),
    audio = el("input", { type: "file", accept: "audio/*,video/*", class: "mg-input" }),
    clip = el("input", { type: "checkbox", class: "mg-check", "data-field": "clip" }),
    clipRow = el(
      "div",
      { hidden: !video.continues },
      el("label", { class: "mg-row mg-small mg-choice" }, clip, `With ${video.continues} in front, and its sound`),
    ),
    credentials = el("input", {
      type: "checkbox",
      class: "mg-check",
      disabled: !answer.credentials,
      "data-action": "credentials",
    }),
    certificate = el("input", { type: "text", class: "mg-input", placeholder: "a path; empty: made for this file" }),
    key = el("input", { type: "text", class: "mg-input", placeholder: "a path" }),
    own = el("div", { hidden: true }, field("Certificate chain (PEM)", certificate), field("Private key (PEM)", key)),
    list = el("div", { class: "ex-list", role: "region", "aria-label": "Exports", tabindex: "0" }),
    toField = field("To second", to),
    audioField = field("Sound from a file", audio);
  const notice = el("p", { class: "mg-muted" });
  function sayWhatItSays() {
    own.hidden = !credentials.checked;
    notice.textContent = !credentials.checked
      ? "The file always says that a model made it."
      : certificate.value.trim()
        ? "Signed with your certificate."
        : "Signed with a certificate made for this file: programs show it as not trusted.";
  }
  for (const node of [credentials, certificate]) node.addEventListener("input", sayWhatItSays);
  sayWhatItSays();
  let isTyped = false; // a beginning that somebody typed stays
  from.addEventListener("input", () => (isTyped = true));
  const chosen = () => answer.formats.find((one) => one.name === format.value);
  function fitFields() {
    const { kind, sound } = chosen();
    toField.hidden = to.disabled = kind === "frame"; // what nobody sees must not keep the form from being sent
    audioField.hidden = !sound;
    clipRow.hidden = !video.continues || kind === "frame";
    if (!isTyped) from.value = short(kind === "frame" ? time : range ? range.from : 0);
    from.parentElement.firstElementChild.textContent = kind === "frame" ? "Moment in seconds" : "From second";
  }
  const box = el("dialog", { class: "mg-dialog ex", "aria-label": "Export" });
  const form = el(
    "form",
    { method: "dialog" },
    el("h3", { text: "Export" }),
    field("Format", format),
    el("div", { class: "mg-row ex-range" }, field("From second", from), toField),
    audioField,
    clipRow,
    el("label", { class: "mg-row mg-small mg-choice" }, settings, "Keep the settings in the file"),
    el(
      "label",
      { class: "mg-row mg-small mg-choice" },
      credentials,
      "Content Credentials (C2PA)" + (answer.credentials ? "" : ": pip install magi-lite[credentials]"),
    ),
    own,
    notice,
    buttonRow(
      button("Close", null, () => box.close()),
      el("button", { type: "submit", class: "mg-btn mg-primary", text: "Export", "data-action": "export-start" }),
    ),
    list,
  );
  const end = () => (to.value === "" ? video.done : Number(to.value));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const one = chosen();
    const order = { video: id, format: one.name, metadata: settings.checked };
    if (credentials.checked)
      Object.assign(order, { credentials: true, certificate: certificate.value, key: key.value });
    if (one.kind === "frame") order.from_second = Number(from.value);
    else if (Number(from.value) > 0 || end() < video.done)
      Object.assign(order, { from_second: Number(from.value), to_second: end() });
    if (clip.checked && !clipRow.hidden) order.clip = true;
    if (one.sound && audio.files[0]) {
      try {
        order.audio = { path: (await upload(audio.files[0])).path };
      } catch {
        toast(`${audio.files[0].name} could not be sent to the app.`, "error");
        return;
      }
    }
    if (!(await call(server.export(order))).error) refresh();
  });
  format.addEventListener("change", fitFields);
  box.append(form);
  openDialog(box);
  fitFields();

  let timer = null;
  async function refresh() {
    clearTimeout(timer);
    if (!box.open) return;
    const now = await call(server.exports({}));
    if (now.exports) draw(now.exports.filter((one) => one.video === id));
    const busy = (now.exports || []).some((one) => ["waiting", "running"].includes(one.state));
    if (busy) timer = setTimeout(refresh, ASK_EVERY);
  }
  const row = (one) => {
    const busy = ["waiting", "running"].includes(one.state),
      bar = el("div", { class: "mg-bar thin" }, el("i"));
    bar.firstElementChild.style.width = one.fraction * 100 + "%";
    return el(
      "div",
      { class: "ex-one " + one.state, "data-export": one.format, "data-state": one.state },
      el("b", { text: one.file || answer.formats.find((format) => format.name === one.format).summary }),
      el("span", {
        class: one.state === "failed" ? "qu-error" : "mg-muted",
        role: "status",
        text: one.bytes === undefined ? one.text : bytes(one.bytes),
      }),
      busy
        ? button("Cancel this export", "close", () => call(server.cancel_export({ export: one.id })).then(refresh), {
            text: "Cancel",
          })
        : one.url
          ? el("a", { class: "mg-btn mg-soft", href: one.url, download: one.file, text: "Save" })
          : null,
      busy ? bar : null,
    );
  };
  const draw = (all) => refill(list, ...all.reverse().map(row));
  refresh();
}

export const askExport = oneAtATime(ask);
