/** The 2-D map: who is beside whom. */

import * as api from "../api.js";
import { choice, h, images, toast } from "../dom.js";
import { Grid } from "../grid.js";
import { Scatter } from "../scatter.js";
import { css } from "../store.js";
import { paint } from "../tiles.js";

const DIMMED = 28;
const OPAQUE = 235;
const WRONG = [213, 94, 0];
const MIDDLE = 40; // CSS pixels around the middle in which keys find an image

export function showMap(app, host, [goal]) {
  return new MapView(app, host, goal === undefined ? null : app.store.imageNumber(goal));
}

class MapView {
  constructor(app, host, goal) {
    Object.assign(this, { app, store: app.store, host, goal, coloring: "cluster", selection: null });
    this.#build();
    this.#begin();
  }

  /** The images in the lasso, if there are any. */
  get grid() { return this.selection ? this.selectionGrid : null; }

  close() {
    this.closed = true;
    this.scatter?.close();
    this.selectionGrid.close();
  }

  refresh() {
    const regrouped = this.store.groups() !== this.groups;
    if (regrouped || this.coloring === "wrong") this.#color(); // else no colour depends on it
  }

  /** Follow the page from light to dark. */
  relight() { this.scatter?.relight(); }

  /** Bring an image to the middle, now or when the map is there. */
  goTo(text) {
    if (text === undefined) return;
    try { this.goal = this.store.imageNumber(text); } catch (error) { toast(error.message, { kind: "bad" }); return; }
    if (this.scatter?.points) this.scatter.goTo(this.goal);
  }

  #build() {
    this.canvas = h("canvas", {
      class: "points", tabindex: "0", role: "application",
      "aria-label": "Map of all images. Arrows move, plus and minus zoom, 0 shows all, Enter opens the image in the middle, A selects all in sight.",
      onkeydown: (event) => this.#key(event), onblur: () => this.#hover(null),
    });
    this.overlay = h("canvas", { class: "overlay" });
    this.tip = h("div", { class: "tip", hidden: true });
    this.status = h("div", { class: "map-status", role: "status" }, h("span", { class: "spinner" }), h("p", {}, "The map is on its way…"));
    this.lasso = h("button", { type: "button", "aria-pressed": "false", title: "Draw around images (L); holding Shift does the same", onclick: () => this.toggleLasso() }, "Lasso");
    const colorings = [["cluster", "Cluster"], ...(this.store.run.has_labels ? [["label", "Class"], ["against", "Other class"]] : []), ["wrong", "Marked"]];
    const tools = h("div", { class: "map-tools" },
      choice({ label: "Colour by", chosen: "cluster", options: colorings, onchoose: (value) => { this.coloring = value; this.#color(); } }),
      this.lasso,
      h("button", { type: "button", title: "Show everything (0)", onclick: () => this.scatter?.reset() }, "Fit"));
    this.selectionGrid = new Grid({ app: this.app, label: "Images that are selected", size: 44 });
    this.found = h("strong", { role: "status" });
    this.panel = h("section", { class: "selection", hidden: true, "aria-label": "Selection" },
      h("header", { class: "line" }, this.found, h("span", { class: "spread" }),
        h("button", { type: "button", onclick: () => this.store.mark(this.selection, true) }, "Mark all wrong"),
        h("button", { type: "button", onclick: () => this.select(null) }, "Clear")),
      this.selectionGrid.element);
    this.host.replaceChildren(h("div", { class: "map" }, this.canvas, this.overlay, tools, this.status, this.tip), this.panel);
  }

  async #begin() {
    try {
      this.scatter = new Scatter(this.canvas, this.overlay, {
        onhover: (image, x, y) => this.#hover(image, x, y),
        onlasso: (found) => { this.select(found); if (this.scatter.lassoing) this.toggleLasso(); },
        onpick: (image) => this.#pick(image),
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
    await this.scatter.painted();
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

  /** Show one cluster only, or all again. Called by the sidebar. */
  focusCluster(cluster) {
    this.app.only = this.#only() === cluster ? null : cluster;
    this.#color();
  }

  /** The cluster that is shown alone, also after it was merged into another. */
  #only() { return this.app.only === null ? null : this.store.target(this.app.only); }

  #color() {
    if (!this.scatter?.points) return;
    const { store } = this;
    const colors = new Uint8Array(4 * store.run.num_images);
    const selected = this.selection && new Set(this.selection);
    const [paintOf, isOn] = this.#scheme();
    const only = this.#only();
    const reachable = new Uint8Array(store.run.num_images); // what one lasso left out, the next may take
    this.groups = store.groups();
    for (let image = 0; image < store.run.num_images; image += 1) {
      reachable[image] = (only === null || store.target(store.cluster[image]) === only) && isOn(image);
      const bright = reachable[image] && (!selected || selected.has(image));
      const color = paintOf(image);
      colors.set(color, 4 * image);
      colors[4 * image + 3] = bright ? OPAQUE : DIMMED;
    }
    this.scatter.setColors(colors, reachable);
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

  #pick(image) {
    this.scatter.highlighted = image;
    this.scatter.draw();
    this.app.open(image);
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

  /** The image that keys are about: the one nearest to the middle. */
  #middle() { return this.scatter.pick(this.canvas.clientWidth / 2, this.canvas.clientHeight / 2, MIDDLE); }

  #key(event) {
    const step = 60;
    const actions = {
      ArrowLeft: () => this.scatter.pan(step, 0), ArrowRight: () => this.scatter.pan(-step, 0),
      ArrowUp: () => this.scatter.pan(0, step), ArrowDown: () => this.scatter.pan(0, -step),
      "+": () => this.scatter.zoom(1.4), "=": () => this.scatter.zoom(1.4), "-": () => this.scatter.zoom(1 / 1.4), 0: () => this.scatter.reset(),
      Escape: () => this.select(null),
      Enter: () => { const middle = this.#middle(); if (middle !== null) this.#pick(middle); },
      a: () => this.select(this.scatter.inSight()),
    };
    const key = event.key === "A" ? "a" : event.key;
    if (!this.scatter?.points || !Object.hasOwn(actions, key) || event.ctrlKey || event.metaKey || event.altKey) return;
    actions[key]();
    this.#hover(this.#middle(), this.canvas.clientWidth / 2, this.canvas.clientHeight / 2);
    event.preventDefault();
    event.stopPropagation();
  }
}
