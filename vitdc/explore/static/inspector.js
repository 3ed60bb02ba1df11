/** All about the image under the cursor, and what can be done with it. */

import * as api from "./api.js";
import { h, redraw } from "./dom.js";
import { css } from "./store.js";

export class Inspector {
  constructor(app, host) { Object.assign(this, { app, store: app.store, host, details: null }); }

  /** Show an image, as soon as it is known what there is to say. */
  async show(image) {
    const details = await api.getJson(`api/images/${image}`).catch(() => null);
    if (!details || this.app.image !== image) return;
    this.details = details;
    this.shown = image;
    this.host.hidden = false;
    this.draw();
  }

  close() {
    this.details = null;
    this.host.hidden = true;
  }

  /** Draw what is shown anew, after corrections. */
  draw() {
    if (!this.details) return;
    const { app, store, details, shown: image } = this;
    const wrong = store.isWrong(image);
    const pairs = [
      ["cluster", h("a", { class: "line", href: `#clusters/${store.target(store.cluster[image])}`, data: { key: "cluster" } }, dot(store.color(store.cluster[image])), store.title(store.cluster[image]))],
      ["distance", store.distance[image].toFixed(4)],
      store.labelName(image) !== null && ["class", h("span", { class: store.isAgainstMajority(image) ? "bad" : "" }, store.labelName(image))],
      details.predicted >= 0 && store.run.has_labels && ["predicted", store.run.class_names[details.predicted]],
      ["split", store.isTrain(image) ? "training" : "held out"],
    ].filter(Boolean);
    redraw(this.host,
      h("header", { class: "line" }, h("h2", { title: details.name }, details.name),
        h("button", { type: "button", class: "quiet", "aria-label": "Close", data: { key: "close" }, onclick: app.closeInspector }, "×")),
      h("img", { class: "large", src: `images/${store.run.key}/${image}`, alt: details.name }),
      h("div", { class: "actions" },
        h("button", { type: "button", "aria-pressed": String(wrong), data: { key: "mark" }, onclick: () => store.toggleMark([image]) }, wrong ? "Marked wrong" : "Mark wrong", h("kbd", {}, "W")),
        this.#link("search", "Similar", "S"), this.#link("map", "Map", "G")),
      h("dl", { class: "pairs" }, pairs.map(([key, value]) => [h("dt", {}, key), h("dd", {}, value)])),
      h("h3", {}, "Nearest centroids"),
      nearest(store, details.nearest),
      h("h3", {}, "Cluster after every round"),
      h("ol", { class: "history" }, details.history.map((cluster, round) => h("li", {
        class: round && cluster !== details.history[round - 1] ? "moved" : "",
      }, h("span", { class: "muted" }, round), dot(store.palette[cluster]), `${cluster}`))));
  }

  /** To a view about the image; it answers also where that view is shown already. */
  #link(view, text, key) {
    const image = this.shown;
    return h("a", {
      class: "button", href: `#${view}/${image}`, data: { key: view },
      onclick: (event) => { if (!event.ctrlKey && !event.metaKey && !event.shiftKey) { event.preventDefault(); this.app.go(view, image); } },
    }, text, h("kbd", {}, key));
  }
}

const dot = (rgb) => h("i", { class: "dot", style: { background: css(rgb) } });

function nearest(store, found) {
  const farthest = Math.max(...found.map(([, distance]) => distance)) || 1;
  return h("dl", { class: "confusion small" }, found.map(([cluster, distance], position) => h("div", {},
    h("dt", { title: store.title(cluster) }, store.corrections.names[store.target(cluster)] ?? `Cluster ${cluster}`),
    h("dd", {}, h("span", { class: `bar${position ? "" : " majority"}`, style: { width: `${(100 * distance) / farthest}%` } })),
    h("dd", { class: "number" }, distance.toFixed(2)))));
}
