/** All about the image under the cursor, and what can be done with it. */

import * as api from "./api.js";
import { h } from "./dom.js";
import { css } from "./store.js";

export async function drawInspector(app, host, image) {
  const { store } = app;
  const details = await api.getJson(`api/images/${image}`).catch(() => null);
  if (!details || app.image !== image) return;
  const dot = (cluster) => h("i", { class: "dot", style: { background: css(store.color(cluster)) } });
  const wrong = store.isWrong(image);
  const pairs = [
    ["cluster", h("a", { class: "line", href: `#clusters/${store.target(store.cluster[image])}` }, dot(store.cluster[image]), store.title(store.cluster[image]))],
    ["distance", store.distance[image].toFixed(4)],
    store.labelName(image) !== null && ["class", h("span", { class: store.isAgainstMajority(image) ? "bad" : "" }, store.labelName(image))],
    details.predicted >= 0 && store.run.has_labels && ["predicted", store.run.class_names[details.predicted]],
    ["split", store.isTrain(image) ? "training" : "held out"],
  ].filter(Boolean);
  host.hidden = false;
  host.replaceChildren(
    h("header", { class: "line" }, h("h2", { title: details.name }, details.name),
      h("button", { type: "button", class: "quiet", "aria-label": "Close", onclick: app.closeInspector }, "×")),
    h("img", { class: "large", src: `images/${store.run.key}/${image}`, alt: details.name }),
    h("div", { class: "actions" },
      h("button", { type: "button", "aria-pressed": String(wrong), onclick: () => store.toggleMark([image]) }, wrong ? "Marked wrong" : "Mark wrong", h("kbd", {}, "W")),
      h("a", { class: "button", href: `#search/${image}` }, "Similar", h("kbd", {}, "S")),
      h("a", { class: "button", href: `#map/${image}` }, "Map", h("kbd", {}, "G"))),
    h("dl", { class: "pairs" }, pairs.map(([key, value]) => [h("dt", {}, key), h("dd", {}, value)])),
    h("h3", {}, "Nearest centroids"),
    nearest(store, details.nearest),
    h("h3", {}, "Cluster after every round"),
    h("ol", { class: "history" }, details.history.map((cluster, round) => h("li", {
      class: round && cluster !== details.history[round - 1] ? "moved" : "",
    }, h("span", { class: "muted" }, round), h("i", { class: "dot", style: { background: css(store.palette[cluster]) } }), `${cluster}`))));
}

function nearest(store, found) {
  const farthest = Math.max(...found.map(([, distance]) => distance)) || 1;
  return h("dl", { class: "confusion small" }, found.map(([cluster, distance], position) => h("div", {},
    h("dt", { title: store.title(cluster) }, store.corrections.names[store.target(cluster)] ?? `Cluster ${cluster}`),
    h("dd", {}, h("span", { class: `bar${position ? "" : " majority"}`, style: { width: `${(100 * distance) / farthest}%` } })),
    h("dd", { class: "number" }, distance.toFixed(2)))));
}
