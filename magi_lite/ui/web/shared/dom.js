// Building DOM without HTML strings: prompts are never parsed as HTML.
import { emit } from "./bus.js";
import { icon } from "./icons.js";

/** An element with properties, attributes, listeners ("onclick") and children; null and false are left out. */
export function el(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "class") node.className = value;
    else if (key === "text") node.textContent = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node && typeof value !== "string") node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined && child !== false) node.append(child);
  return node;
}

/** A button. `extra`: class, title, text, iconOnly, disabled, action (found by tests and by the keys). */
export function button(label, name, onclick, extra = {}) {
  return el(
    "button",
    {
      type: "button",
      class: "mg-btn" + (extra.class ? " " + extra.class : ""),
      title: extra.title || label,
      "aria-label": label,
      onclick,
      disabled: extra.disabled,
      "data-action": extra.action,
      "data-server": extra.server,
    },
    name ? icon(name) : null,
    extra.iconOnly ? null : el("span", { text: extra.text || label }),
  );
}

/** A table of [name, value] rows. */
export function table(rows) {
  const row = ([name, value]) => el("tr", {}, el("th", { scope: "row", text: name }), el("td", { text: value }));
  return el("table", { class: "mg-table" }, el("tbody", {}, ...rows.map(row)));
}

/** Keep what happens inside `node` from Gradio, which listens to every input and change on the page. */
export function keepInside(node, names = ["input", "change"]) {
  for (const name of names) node.addEventListener(name, (event) => event.stopPropagation());
  return node;
}

/**
 * Show a dialog and forget it when it closes. The browser gives the focus back to what had it; where that was drawn
 * anew meanwhile, what stands in its place gets it.
 */
export function openDialog(box) {
  keepInside(box);
  const before = placeOf(document.activeElement);
  box.addEventListener("close", () => {
    box.remove();
    if (document.activeElement === document.body) returnTo(before);
    emit("dialog");
  });
  document.querySelector(".gradio-container").append(box);
  box.showModal();
  emit("dialog");
  return box;
}

/** A function of which one call is under way at a time: a double click opens one dialog. */
export function oneAtATime(run) {
  let busy = false;
  return async (...given) => {
    if (busy) return;
    busy = true;
    await run(...given).finally(() => (busy = false));
  };
}

const CONTROLS = "button:not(:disabled), a[href], input:not(:disabled), select:not(:disabled), [tabindex='0']";
/** What a control is for: whose, and what it does. */
const purpose = (node) => {
  const { job, tile } = node.closest("[data-job], [data-tile]")?.dataset || {};
  return [job || tile, node.dataset.action || node.dataset.version || node.title].join();
};

/** Where a control is: itself, and each node that it lies in with the number of the child on the way to it. */
function placeOf(control) {
  const path = [];
  for (let node = control; node && node.parentElement; node = node.parentElement)
    path.push([node.parentElement, [...node.parentElement.children].indexOf(node)]);
  return { control, path };
}
/** Focus the control for the same as the one that was there, else one in its place. */
function returnTo({ control, path }) {
  if (control === document.body) return;
  for (const [node, i] of path.filter(([one]) => one.isConnected)) {
    const inside = [...node.querySelectorAll(CONTROLS)],
      there = node.children[Math.min(i, node.children.length - 1)],
      next =
        inside.find((one) => purpose(one) === purpose(control)) ||
        (there && (there.matches(CONTROLS) ? there : there.querySelector(CONTROLS)));
    if (!next) continue;
    next.focus({ preventScroll: true });
    return;
  }
}

/** Give a node other children; the focus stays on the control for the same, else on the one in its place. */
export const refill = (node, ...children) => keepFocus(node, () => node.replaceChildren(...children));

/** Do what draws controls in a node anew; the focus stays on the control for the same, else on the one in its place. */
export function keepFocus(node, change) {
  const focused = node.contains(document.activeElement) ? document.activeElement : null,
    before = focused ? [...node.querySelectorAll(CONTROLS)] : [];
  change();
  if (!focused || document.activeElement === focused) return;
  const controls = [...node.querySelectorAll(CONTROLS)],
    alike = (all) => all.filter((one) => purpose(one) === purpose(focused)),
    nth = (all, place) => all[Math.min(Math.max(0, place), all.length - 1)],
    next = nth(alike(controls), alike(before).indexOf(focused)) || nth(controls, before.indexOf(focused));
  if (next) next.focus({ preventScroll: true });
}

/** What a dialog ends with: its buttons, to the right. */
export const buttonRow = (...buttons) => el("div", { class: "mg-row" }, el("span", { class: "mg-grow" }), ...buttons);

/** A small form as a dialog; `submit` answers what `call` does, and the dialog stays open where that is an error. */
export function askFor(title, intro, fields, ok, submit) {
  const box = el("dialog", { class: "mg-dialog", "aria-label": title });
  const confirm = el("button", { type: "submit", class: "mg-btn mg-primary", text: ok }),
    buttons = buttonRow(
      button("Cancel", null, () => box.close()),
      confirm,
    );
  const heading = [el("h3", { text: title }), intro ? el("p", { class: "mg-muted", text: intro }) : null];
  const form = el("form", { method: "dialog" }, ...heading, ...fields, buttons);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (confirm.disabled) return; // its answer is on its way
    confirm.disabled = true;
    const answer = await submit();
    confirm.disabled = false;
    if (!answer.error) box.close();
  });
  box.append(form);
  return openDialog(box);
}

/** Ask before something is done; a promise of the answer. */
export function sure(title, sentence, ok) {
  return new Promise((answer) => {
    const box = el("dialog", { class: "mg-dialog", "aria-label": title });
    let agreed = false;
    const yes = button(ok, null, () => ((agreed = true), box.close()), { class: "mg-danger", action: "sure" });
    box.append(
      el("h3", { text: title }),
      el("p", { text: sentence }),
      buttonRow(
        button("Cancel", null, () => box.close()),
        yes,
      ),
    );
    box.addEventListener("close", () => answer(agreed));
    openDialog(box);
  });
}

/** Hand a file to the browser, which saves it under that name. */
export function saveAs(content, name) {
  const link = el("a", { href: URL.createObjectURL(content), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** A labelled input for a dialog. */
export const field = (label, input) => el("label", { class: "mg-field" }, el("span", { text: label }), input);
