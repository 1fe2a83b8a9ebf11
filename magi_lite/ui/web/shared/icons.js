// One path each, drawn in a box of 24 by 24.
const PATHS = {
  play: "M8 5v14l11-7z",
  pause: "M6 5h4v14H6zM14 5h4v14h-4z",
  stop: "M6 6h12v12H6z",
  back: "M16 5v14L6 12zM4 5h2v14H4z",
  forward: "M8 5v14l10-7zM18 5h2v14h-2z",
  loop: "M7 7h10v3l4-4-4-4v3H5v6h2zM17 17H7v-3l-4 4 4 4v-3h12v-6h-2z",
  camera: "M8 5l1.5-2h5L16 5h5v15H3V5zm4 3.5a4.5 4.5 0 100 9 4.5 4.5 0 000-9zm0 2a2.5 2.5 0 110 5 2.5 2.5 0 010-5z",
  fullscreen: "M3 3h7v2H5v5H3zM14 3h7v7h-2V5h-5zM3 14h2v5h5v2H3zM19 14h2v7h-7v-2h5z",
  compare: "M11 2h2v20h-2zM3 5h6v14H3zm2 2v10h2V7zM15 5h6v14h-6z",
  star: "M12 2l3 6.6 7 .8-5.2 4.8 1.4 7L12 17.6 5.8 21.2l1.4-7L2 9.4l7-.8z",
  add: "M11 5h2v6h6v2h-6v6h-2v-6H5v-2h6z",
  split:
    "M6 3a3 3 0 100 6 3 3 0 000-6zm0 2a1 1 0 110 2 1 1 0 010-2zM6 15a3 3 0 100 6 3 3 0 000-6z" +
    "m0 2a1 1 0 110 2 1 1 0 010-2zM7.5 8.5L21 18.5h-3L7 10zM7.5 15.5L21 5.5h-3L7 14z",
  merge: "M2 11h6V7l5 5-5 5v-4H2zM22 11h-5V7l-5 5 5 5v-4h5zM2 3h2v5H2zM20 3h2v5h-2zM2 16h2v5H2zM20 16h2v5h-2z",
  ripple: "M3 5h4v14H3zM9 5h4v14H9zM15 11h3V8l4 4-4 4v-3h-3z",
  marker: "M6 3h12v4l-4 5v0l4 5v0H8v4H6zM8 5v10h6l-2.5-3L16 6V5z",
  bell: "M12 2a6 6 0 016 6v5l2 3v2H4v-2l2-3V8a6 6 0 016-6zM9.5 19h5a2.5 2.5 0 01-5 0z",
  copy: "M8 4h11v13H8zM5 7h1v12h10v1H5z",
  trash: "M6 8h12l-1 13H7zM9 4h6l1 2h4v1H4V6h4z",
  undo: "M9 5L3 10l6 5v-3.5c5 0 8 1.5 10 5.5 0-7-4-9-10-9z",
  redo: "M15 5l6 5-6 5v-3.5c-5 0-8 1.5-10 5.5 0-7 4-9 10-9z",
  zoomin: "M10 3a7 7 0 105 12l5 5 1.5-1.5-5-5A7 7 0 0010 3zm-1 4h2v2h2v2h-2v2H9v-2H7V9h2z",
  zoomout: "M10 3a7 7 0 105 12l5 5 1.5-1.5-5-5A7 7 0 0010 3zM7 9h6v2H7z",
  fit: "M3 6h2v12H3zM19 6h2v12h-2zM6 12l4-4v3h4V8l4 4-4 4v-3h-4v3z",
  upload: "M5 18h14v2H5zM11 16V8H7l5-5 5 5h-4v8z",
  download: "M5 18h14v2H5zM11 4h2v8h4l-5 5-5-5h4z",
  text: "M4 6h16v2H4zM4 11h16v2H4zM4 16h10v2H4z",
  help:
    "M12 2a10 10 0 100 20 10 10 0 000-20zm1 16h-2v-2h2zm1.5-6.5c-1 .8-1.5 1.2-1.5 2.5h-2c0-2 .8-2.8 1.8-3.6" +
    ".8-.6 1.2-1 1.2-1.8a2 2 0 00-4 .4H7a5 5 0 0110-.3c0 1.4-1 2.1-2.5 2.8z",
  up: "M12 6l7 8H5z",
  down: "M12 18l7-8H5z",
  edit: "M4 16.5V20h3.5L18 9.5 14.5 6zM16 4.5l3.5 3.5L21 6.5 17.5 3z",
  folder: "M3 5h7l2 2h9v12H3z",
  close: "M6 4.5L4.5 6l6 6-6 6L6 19.5l6-6 6 6 1.5-1.5-6-6 6-6L18 4.5l-6 6z",
  theme: "M12 3a9 9 0 109 9 7 7 0 01-9-9z",
  image: "M3 4h18v16H3zm2 2v9l4-4 4 4 3-3 3 3V6zm3 1a2 2 0 110 4 2 2 0 010-4z",
  branch: "M6 3h2v10c2-3 5-3 8-4V7l4 3.5L16 14v-2.5c-4 1-7 1.5-8 5V21H6z",
  check: "M9 16.5L4.5 12 3 13.5l6 6L21 7.5 19.5 6z",
};
const SVG = "http://www.w3.org/2000/svg";

/** The named icon as an SVG element; it says nothing to a screen reader. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg"),
    path = document.createElementNS(SVG, "path");
  for (const [key, value] of [
    ["viewBox", "0 0 24 24"],
    ["aria-hidden", "true"],
    ["class", "mg-icon"],
  ])
    svg.setAttribute(key, value);
  path.setAttribute("d", PATHS[name] || "");
  path.setAttribute("fill-rule", "evenodd");
  svg.append(path);
  return svg;
}
