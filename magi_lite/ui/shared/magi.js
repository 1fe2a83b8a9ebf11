// What every panel of the app shares: building DOM without HTML strings (prompts are never parsed as HTML),
// formatting, and a tiny bus on which the poller publishes the server's state.
window.magi = window.magi || (() => {
  const el = (tag, props, ...children) => {
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
  };
  const ICONS = {
    play: "M8 5v14l11-7z", pause: "M6 5h4v14H6zM14 5h4v14h-4z", stop: "M6 6h12v12H6z",
    add: "M11 5h2v6h6v2h-6v6h-2v-6H5v-2h6z", split: "M11 3h2v18h-2zM4 8l4 4-4 4zM20 8l-4 4 4 4z",
    merge: "M11 3h2v18h-2zM9 12L5 8v8zM15 12l4-4v8z", copy: "M8 4h11v13H8zM5 7h1v12h10v1H5z",
    trash: "M6 8h12l-1 13H7zM9 4h6l1 2h4v1H4V6h4z", undo: "M9 5L3 10l6 5v-3.5c5 0 8 1.5 10 5.5 0-7-4-9-10-9z",
    redo: "M15 5l6 5-6 5v-3.5c-5 0-8 1.5-10 5.5 0-7 4-9 10-9z", zoomin: "M10 3a7 7 0 105 12l5 5 1.5-1.5-5-5A7 7 0 0010 3zm-1 4h2v2h2v2h-2v2H9v-2H7V9h2z",
    zoomout: "M10 3a7 7 0 105 12l5 5 1.5-1.5-5-5A7 7 0 0010 3zM7 9h6v2H7z", fit: "M3 6h2v12H3zM19 6h2v12h-2zM6 12l4-4v3h4V8l4 4-4 4v-3h-4v3z",
    upload: "M5 18h14v2H5zM11 16V8H7l5-5 5 5h-4v8z", download: "M5 18h14v2H5zM11 4h2v8h4l-5 5-5-5h4z",
    text: "M4 6h16v2H4zM4 11h16v2H4zM4 16h10v2H4z", help: "M12 2a10 10 0 100 20 10 10 0 000-20zm1 16h-2v-2h2zm1.5-6.5c-1 .8-1.5 1.2-1.5 2.5h-2c0-2 .8-2.8 1.8-3.6.8-.6 1.2-1 1.2-1.8a2 2 0 00-4 .4H7a5 5 0 0110-.3c0 1.4-1 2.1-2.5 2.8z",
    lock: "M7 10V7a5 5 0 0110 0v3h1v11H6V10zm2 0h6V7a3 3 0 00-6 0z", up: "M12 6l7 8H5z", down: "M12 18l7-8H5z",
    edit: "M4 16.5V20h3.5L18 9.5 14.5 6zM16 4.5l3.5 3.5L21 6.5 17.5 3z", dice: "M4 4h16v16H4zm4 3a1.5 1.5 0 100 3 1.5 1.5 0 000-3zm8 7a1.5 1.5 0 100 3 1.5 1.5 0 000-3zm-4-3.5a1.5 1.5 0 100 3 1.5 1.5 0 000-3z",
    folder: "M3 5h7l2 2h9v12H3z", close: "M6 4.5L4.5 6l6 6-6 6L6 19.5l6-6 6 6 1.5-1.5-6-6 6-6L18 4.5l-6 6z",
    theme: "M12 3a9 9 0 109 9 7 7 0 01-9-9z", image: "M3 4h18v16H3zm2 2v9l4-4 4 4 3-3 3 3V6zm3 1a2 2 0 110 4 2 2 0 010-4z",
    branch: "M6 3h2v10c2-3 5-3 8-4V7l4 3.5L16 14v-2.5c-4 1-7 1.5-8 5V21H6z", check: "M9 16.5L4.5 12 3 13.5l6 6L21 7.5 19.5 6z",
  };
  const icon = (name) => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 24 24"); svg.setAttribute("aria-hidden", "true"); svg.setAttribute("class", "mg-icon");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", ICONS[name] || ""); path.setAttribute("fill-rule", "evenodd"); svg.append(path);
    return svg;
  };
  const button = (label, name, onclick, extra) => el("button", {
    type: "button", class: "mg-btn" + (extra && extra.class ? " " + extra.class : ""), title: (extra && extra.title) || label,
    "aria-label": label, onclick, disabled: extra && extra.disabled, "data-action": extra && extra.action,
  }, name ? icon(name) : null, extra && extra.iconOnly ? null : el("span", { text: (extra && extra.text) || label }));

  const bytes = (n) => {
    if (n === null || n === undefined) return "–";
    const units = ["B", "kB", "MB", "GB", "TB"]; let i = 0;
    while (n >= 1000 && i < units.length - 1) { n /= 1000; i += 1; }
    return (n >= 100 || i === 0 ? n.toFixed(0) : n.toFixed(1)) + " " + units[i];
  };
  const duration = (s) => {
    if (s === null || s === undefined || !isFinite(s)) return "–";
    s = Math.max(0, Math.round(s));
    const h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60, r = s % 60, two = (x) => String(x).padStart(2, "0");
    return h ? `${h}:${two(m)}:${two(r)}` : `${m}:${two(r)}`;
  };
  const emit = (name, detail) => window.dispatchEvent(new CustomEvent("magi-" + name, { detail }));
  const on = (owner, name, callback) => {
    const handler = (event) => {
      if (!owner.isConnected) { window.removeEventListener("magi-" + name, handler); return; }
      callback(event.detail);
    };
    window.addEventListener("magi-" + name, handler);
  };
  const toast = (message, level) => emit("toast", { message, level: level || "info" });
  const call = async (promise) => {                    // server functions answer {error} instead of failing
    let answer;
    try { answer = await promise; } catch (_) { answer = { error: "The app does not answer; is it still running?" }; }
    if (answer && answer.error) toast(answer.error, "error");
    return answer || {};
  };
  // What fields held when a question about them left the page; its answer goes only to those that still hold it.
  const held = {}, SKIP = { __type__: "update" };
  const ask = (key, all, inputs) => { held[key] = all.slice(inputs).map((value) => JSON.stringify(value)); return all; };
  const given = {};                                    // what the question's last answer put there: nobody typed that
  const answer = (key, [mail, ...now]) => mail.values.map((value, i) => {
    const holds = JSON.stringify(now[i]), earlier = given[key] || (given[key] = {});
    if (holds === held[key][i] || holds === earlier[i]) {
      const plain = value && value.__type__ === "update" ? value.value : value;
      if (plain !== undefined) earlier[i] = JSON.stringify(plain);
      return value;
    }
    const { value: dropped, ...rest } = value && value.__type__ === "update" ? value : SKIP;
    return rest;
  });
  const copy = (value) => JSON.parse(JSON.stringify(value));
  return { el, icon, button, bytes, duration, emit, on, toast, call, copy, ask, answer, SKIP, state: null };
})();
