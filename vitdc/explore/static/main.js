/** The page: which view is shown, the shortcuts, the light. Views live in views/. */

import { count, dialog, h, images, percent, toast } from "./dom.js";
import { Inspector } from "./inspector.js";
import { Sidebar } from "./sidebar.js";
import { Store } from "./store.js";
import { showClusters } from "./views/clusters.js";
import { showMap } from "./views/map.js";
import { showMoves } from "./views/moves.js";
import { showOutliers } from "./views/outliers.js";
import { showSearch } from "./views/search.js";

const VIEWS = {
  clusters: ["Clusters", showClusters],
  map: ["Map", showMap],
  moves: ["Moves", showMoves],
  outliers: ["Outliers", showOutliers],
  search: ["Search", showSearch],
};
const SHORTCUTS = [
  ["1 … 5", "clusters, map, moves, outliers, search"],
  ["[ and ], or , and .", "previous and next cluster"],
  ["N", "name the cluster"],
  ["arrows, Page, Home, End", "move in the pictures; with Shift, select; with Ctrl, keep the selection"],
  ["Space, Ctrl A", "select one, select all"],
  ["W", "mark the selection wrong, or the image shown; again takes the mark away"],
  ["S", "search images like this one"],
  ["G", "show it on the map"],
  ["L", "lasso on the map (or hold Shift)"],
  ["arrows, + − 0", "move, zoom and fit the map"],
  ["Enter, A", "on the map: open the image in the middle, select all in sight"],
  ["Ctrl Z", "undo"],
  ["T", "light, dark, or as the system says"],
  ["Esc", "clear the selection, close"],
];
const element = (id) => document.getElementById(id);

class App {
  order = "id";
  image = null;
  only = null; // the one cluster that the map shows, if not all
  view = null;
  route = ["clusters"];

  async start() {
    this.store = await Store.open();
    this.store.addEventListener("corrections", () => this.refresh());
    this.#frame();
    addEventListener("hashchange", () => this.navigate());
    document.querySelector(".skip").addEventListener("click", (event) => {
      event.preventDefault(); // the address says which view is shown
      (document.querySelector(".view .grid, .view .points") ?? element("main")).focus();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.view?.relight?.());
    addEventListener("keydown", (event) => this.#key(event));
    this.#acceptDrops();
    await this.navigate();
    document.body.dataset.ready = "page";
  }

  /** Show what the address names: #view/argument. */
  async navigate() {
    const [name, ...rest] = location.hash.slice(1).split("/");
    const before = this.route;
    this.route = Object.hasOwn(VIEWS, name) ? [name, ...rest] : ["clusters"];
    if (this.view?.goTo && before[0] === this.route[0]) { this.view.goTo(this.route[1]); return; }
    this.view?.close?.();
    this.view = this.only = null;
    // a place of its own: a view that was slow to come paints where nobody looks any more
    const host = h("div", { class: "view", id: `view-${this.route[0]}` });
    element("main").replaceChildren(host, this.selected);
    for (const link of element("views").children) {
      if (link.hash === `#${this.route[0]}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    this.sidebar.mark({ reveal: true });
    const route = this.route;
    try {
      const view = await VIEWS[route[0]][1](this, host, route.slice(1));
      if (route === this.route) this.view = view;
      else view?.close?.();
    } catch (error) {
      host.replaceChildren(h("p", { class: "empty" }, error.message));
    }
  }

  refresh() {
    this.sidebar.draw();
    this.#scores();
    this.view?.refresh?.();
    this.inspector.draw();
  }

  /** Show an image in the inspector. */
  open = (image) => {
    this.image = image;
    this.inspector.show(image);
  };

  closeInspector = () => {
    this.image = null;
    this.inspector.close();
  };

  /** Say how many images an action would be about. */
  showSelected(number) {
    this.selected.hidden = number === 0;
    this.selected.replaceChildren(h("strong", {}, `${count(number)} selected`), h("kbd", {}, "Esc"));
  }

  /** Show an image in another view, or in this one. */
  go(view, image) {
    const hash = `#${view}/${image}`;
    if (image === undefined) toast("Choose an image first");
    else if (location.hash !== hash) location.hash = hash;
    else this.view?.goTo?.(image);
  }

  // --- the frame -----------------------------------------------------------------------------------

  #frame() {
    const { run } = this.store;
    const table = (name, about) => h("a", { href: `export/${name}?clustering=${run.clustering}`, download: name }, h("strong", {}, name), h("span", {}, about));
    // pictures of a few pixels are shown as squares; larger ones are scaled smoothly
    document.documentElement.toggleAttribute("data-pixels", run.tile_side <= 16);
    document.title = `${run.dataset} – vitdc explore`;
    element("dataset").textContent = run.dataset;
    element("dataset").title = run.results;
    element("views").replaceChildren(...Object.entries(VIEWS).map(([name, [text]], position) => h("a", { href: `#${name}`, title: `Key ${position + 1}` }, text)));
    const theme = h("button", { type: "button", id: "theme", class: "quiet", onclick: () => this.nextTheme() });
    element("tools").replaceChildren(
      h("details", { class: "menu", onfocusout: (event) => { const menu = event.currentTarget; if (!menu.contains(event.relatedTarget)) menu.open = false; } },
        h("summary", {}, "Export"),
        h("div", { onclick: (event) => { event.currentTarget.parentElement.open = false; } },
          table("names.csv", "a row per cluster"), table("assignments.csv", "a row per image"))),
      theme,
      h("button", { type: "button", class: "quiet", "aria-label": "Keyboard shortcuts", title: "Keyboard shortcuts (?)", onclick: help }, "?"));
    this.#applyTheme(stored("theme") ?? "system");
    this.selected = h("p", { class: "selected", role: "status", hidden: true });
    this.sidebar = new Sidebar(this, element("sidebar"));
    this.inspector = new Inspector(this, element("inspector"));
    this.sidebar.draw();
    this.#scores();
  }

  #scores() {
    const { run } = this.store;
    const nmi = run.metrics.test?.nmi ?? run.metrics.train?.nmi;
    const purity = this.store.purity();
    element("scores").replaceChildren(
      ...[images(run.num_images), purity !== null && `purity ${percent(purity)}`, nmi != null && `NMI ${nmi.toFixed(3)}`].filter(Boolean).map((text) => h("span", {}, text)));
  }

  nextTheme() {
    const themes = ["system", "light", "dark"];
    this.#applyTheme(themes[(themes.indexOf(this.theme) + 1) % 3]);
  }

  #applyTheme(theme) {
    this.theme = theme;
    document.documentElement.dataset.theme = theme;
    try { localStorage.setItem("vitdc-theme", theme); } catch { /* private window: not kept */ }
    const button = element("theme");
    button.textContent = { system: "◐", light: "☀", dark: "☾" }[theme];
    button.setAttribute("aria-label", `Light or dark: ${theme}`);
    button.title = `${{ system: "As the system says", light: "Light", dark: "Dark" }[theme]} (T)`;
    this.view?.relight?.();
  }

  #acceptDrops() {
    addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
    addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
    addEventListener("drop", async (event) => {
      event.preventDefault();
      document.body.classList.remove("dropping");
      const [file] = event.dataTransfer.files;
      if (!file) return;
      if (!this.view?.lookUp) {
        history.pushState(null, "", "#search");
        await this.navigate();
      }
      this.view?.lookUp?.(file); // unless one went elsewhere meanwhile
    });
  }

  // --- the keyboard --------------------------------------------------------------------------------

  #key(event) {
    const typing = event.target.matches?.("input, textarea, select") || document.querySelector("dialog[open]");
    if (typing) return;
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") { event.preventDefault(); this.store.undo(); return; }
    // some keyboards have [ and ] behind AltGr, which may come as Ctrl and Alt
    if ((event.ctrlKey || event.metaKey || event.altKey) && !event.getModifierState("AltGraph")) return;
    if (event.repeat && event.key.toLowerCase() === "w") return; // held down, it would go to and fro
    const action = this.#action(event.key.length === 1 ? event.key.toLowerCase() : event.key);
    if (action) { event.preventDefault(); action(); }
  }

  #action(key) {
    const names = Object.keys(VIEWS);
    if (key >= "1" && key <= String(names.length)) return () => { location.hash = `#${names[key - 1]}`; };
    const chosen = this.#chosen();
    return {
      "?": help, t: () => this.nextTheme(), l: () => this.view?.toggleLasso?.(),
      "[": () => this.#step(-1), "]": () => this.#step(1), ",": () => this.#step(-1), ".": () => this.#step(1),
      n: () => element("name")?.select(),
      w: () => { if (chosen.length) this.store.toggleMark(chosen); else toast("Choose an image first"); },
      s: () => this.go("search", chosen[0]), g: () => this.go("map", chosen[0]),
      Escape: this.closeInspector,
    }[key];
  }

  /** What a key is about: the selection, else the image shown beside, else the one under the cursor. */
  #chosen() {
    const grid = this.view?.grid;
    if (grid?.selected.size) return [...grid.selected];
    if (this.image !== null) return [this.image];
    return grid?.current === undefined ? [] : [grid.current];
  }

  #step(by) {
    const ids = [...document.querySelectorAll("#sidebar .entry")].map((link) => link.dataset.cluster);
    // from the address, which is ahead of the view when keys come fast
    const here = ids.indexOf(/^#clusters\/(\d+)/.exec(location.hash)?.[1]);
    location.hash = `#clusters/${ids[here < 0 ? 0 : (here + by + ids.length) % ids.length]}`;
  }
}

function help() {
  dialog("Keyboard", h("dl", { class: "shortcuts" }, SHORTCUTS.map(([keys, what]) => [h("dt", {}, h("kbd", {}, keys)), h("dd", {}, what)])));
}

function stored(key) {
  try { return localStorage.getItem(`vitdc-${key}`); } catch { return null; }
}

new App().start().catch((error) => element("main").replaceChildren(h("p", { class: "empty" }, error.message)));
