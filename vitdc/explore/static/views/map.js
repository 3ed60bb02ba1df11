/** The 2-D map: who is beside whom. */

import * as api from "../api.js";
import { choice, h, images } from "../dom.js";
import { Grid } from "../grid.js";
import { Scatter } from "../scatter.js";
import { css } from "../store.js";
import { paint } from "../tiles.js";

const DIMMED = 28;
const OPAQUE = 235;
const WRONG = [213, 94, 0];

export function showMap(app, host, [goal]) {
  return new MapView(app, host, goal === undefined ? null : Number(goal));
}

class MapView {
  constructor(app, host, goal) {
    Object.assign(this, { app, store: app.store, host, goal, coloring: "cluster", selection: null });
    this.#build();
    this.#begin();
  }

  /** What keys like W are about: the images in the lasso, if there is one. */
  get grid() { return this.selection ? this.selectionGrid : null; }

  close() {
    this.closed = true;
    this.scatter?.close();
    this.selectionGrid.close();
  }

  refresh() { this.#color(); }

  #build() {
    this.canvas = h("canvas", { class: "points", tabindex: "0", role: "application", "aria-label": "Map of all images. Arrows move, plus and minus zoom, 0 shows all.", onkeydown: (event) => this.#key(event) });
    this.overlay = h("canvas", { class: "overlay" });
    this.tip = h("div", { class: "tip", hidden: true });
    this.status = h("div", { class: "map-status", role: "status" }, h("span", { class: "spinner" }), h("p", {}, "The map is on its way…"));
    this.lasso = h("button", { type: "button", "aria-pressed": "false", title: "Draw around images (L); holding Shift does the same", onclick: () => this.toggleLasso() }, "Lasso");
    const colorings = [["cluster", "Cluster"], ...(this.store.run.has_labels ? [["label", "Class"], ["against", "Other class"]] : []), ["wrong", "Marked"]];
    const tools = h("div", { class: "map-tools" },
      choice({ label: "Colour by", chosen: "cluster", options: colorings, onchoose: (value) => { this.coloring = value; this.#color(); } }),
      this.lasso,
      h("button", { type: "button", title: "Show everything (0)", onclick: () => this.scatter?.reset() }, "Fit"));
    this.selectionGrid = new Grid({ store: this.store, label: "Images inside the lasso", size: 44, onopen: this.app.open });
    this.found = h("strong", { role: "status" });
    this.panel = h("section", { class: "selection", hidden: true, "aria-label": "Selection" },
      h("header", { class: "line" }, this.found, h("span", { class: "spread" }),
        h("button", { type: "button", onclick: () => this.store.toggleMark(this.selection) }, "Mark all wrong"),
        h("button", { type: "button", onclick: () => this.select(null) }, "Clear")),
      this.selectionGrid.element);
    this.host.replaceChildren(h("div", { class: "map" }, this.canvas, this.overlay, tools, this.status, this.tip), this.panel);
  }

  async #begin() {
    try {
      this.scatter = new Scatter(this.canvas, this.overlay, {
        onhover: (image, x, y) => this.#hover(image, x, y),
        onlasso: (found) => { this.select(found); if (this.scatter.lassoing) this.toggleLasso(); },
        onpick: (image) => { this.scatter.highlighted = image; this.scatter.draw(); this.app.open(image); },
      });
      this.app.coordinates ??= await this.#wait();
    } catch (error) {
      this.status.replaceChildren(h("p", {}, error.message));
      return;
    }
    if (this.closed) return;
    this.status.remove();
    this.scatter.setPoints(this.app.coordinates);
    this.#color();
    if (this.goal !== null) this.scatter.goTo(this.goal);
    this.host.dataset.ready = "map";
  }

  async #wait() {
    for (;;) {
      const { coordinates, progress } = await api.getMap();
      if (coordinates) return coordinates;
      this.status.querySelector("p").textContent = `${progress.stage} – ${Math.round(progress.seconds)} s`;
      await new Promise((resolve) => setTimeout(resolve, 500));
      if (this.closed) return null;
    }
  }

  select(found) {
    this.selection = found?.length ? found : null;
    this.panel.hidden = !this.selection;
    if (this.selection) {
      const clusters = new Set(this.selection.map((image) => this.store.target(this.store.cluster[image])));
      this.found.textContent = `${images(this.selection.length)} of ${clusters.size} ${clusters.size === 1 ? "cluster" : "clusters"}`;
      this.selectionGrid.show(this.selection);
    }
    this.#color();
  }

  toggleLasso() {
    if (!this.scatter) return;
    this.scatter.lassoing = !this.scatter.lassoing;
    this.lasso.setAttribute("aria-pressed", String(this.scatter.lassoing));
    this.canvas.classList.toggle("lassoing", this.scatter.lassoing);
  }

  /** Show one cluster only; null for all. Called by the sidebar. */
  focusCluster(cluster) {
    this.only = this.only === cluster ? null : cluster;
    this.#color();
    return this.only;
  }

  #color() {
    if (!this.scatter?.points) return;
    const { store } = this;
    const colors = new Uint8Array(4 * store.run.num_images);
    const selected = this.selection && new Set(this.selection);
    const [paintOf, isOn] = this.#scheme();
    for (let image = 0; image < store.run.num_images; image += 1) {
      const bright = (!selected || selected.has(image)) && (this.only == null || store.target(store.cluster[image]) === this.only) && isOn(image);
      const color = paintOf(image);
      colors.set(color, 4 * image);
      colors[4 * image + 3] = bright ? OPAQUE : DIMMED;
    }
    this.scatter.setColors(colors);
  }

  /** [colour of an image, whether it stands out]. */
  #scheme() {
    const { store } = this;
    const always = () => true;
    const cluster = (image) => store.color(store.cluster[image]);
    return {
      cluster: [cluster, always],
      label: [(image) => (store.label[image] < 0 ? [140, 140, 140] : store.labelPalette[store.label[image]]), always],
      against: [(image) => (store.isAgainstMajority(image) ? WRONG : cluster(image)), (image) => store.isAgainstMajority(image)],
      wrong: [(image) => (store.isWrong(image) ? WRONG : cluster(image)), (image) => store.isWrong(image)],
    }[this.coloring];
  }

  #hover(image, x, y) {
    if (image === this.hovered && image !== null) { this.#placeTip(x, y); return; }
    this.hovered = image;
    this.tip.hidden = image === null;
    if (image === null) return;
    const { store } = this;
    const picture = h("span", { class: "picture" });
    paint(picture, store.run, [image], 0, 88);
    this.tip.replaceChildren(picture, h("div", {},
      h("p", { class: "line" }, h("i", { class: "dot", style: { background: css(store.color(store.cluster[image])) } }), h("strong", {}, store.title(store.cluster[image]))),
      store.labelName(image) !== null && h("p", {}, `class ${store.labelName(image)}`),
      h("p", { class: "muted" }, `distance ${store.distance[image].toFixed(3)}`)));
    this.#placeTip(x, y);
  }

  #placeTip(x, y) {
    const [right, below] = [x > this.canvas.clientWidth - 250, y > this.canvas.clientHeight - 130];
    this.tip.style.transform = `translate(${right ? x - 230 : x + 14}px, ${below ? y - 112 : y + 14}px)`;
  }

  #key(event) {
    const step = 60;
    const actions = {
      ArrowLeft: () => this.scatter.pan(step, 0), ArrowRight: () => this.scatter.pan(-step, 0),
      ArrowUp: () => this.scatter.pan(0, step), ArrowDown: () => this.scatter.pan(0, -step),
      "+": () => this.scatter.zoom(1.4), "=": () => this.scatter.zoom(1.4), "-": () => this.scatter.zoom(1 / 1.4), 0: () => this.scatter.reset(),
      Escape: () => this.select(null),
    };
    if (!this.scatter || !(event.key in actions) || event.ctrlKey || event.metaKey) return;
    actions[event.key]();
    event.preventDefault();
    event.stopPropagation();
  }
}
