/** The clusters, always in sight. */

import { count, h, percent, redraw } from "./dom.js";
import { css } from "./store.js";
import { sorted } from "./views/clusters.js";

const ORDERS = [["id", "by number"], ["size", "by size"], ["purity", "least pure first"]];

export class Sidebar {
  constructor(app, host) {
    Object.assign(this, { app, store: app.store });
    const orders = ORDERS.filter(([value]) => value !== "purity" || this.store.run.has_labels);
    const order = h("select", { "aria-label": "Order of the clusters", onchange: () => { app.order = order.value; app.refresh(); } },
      orders.map(([value, text]) => h("option", { value }, text)));
    this.title = h("h2");
    this.list = h("ul");
    host.replaceChildren(h("header", { class: "line" }, this.title, order), this.list);
  }

  draw() {
    const groups = sorted(this.store, this.app.order);
    const largest = Math.max(...groups.map((group) => group.members.length));
    this.title.textContent = `${count(groups.length)} clusters`;
    redraw(this.list, ...groups.map((group) => h("li", {}, this.#entry(group, largest))));
    this.mark();
  }

  /** Show which cluster the page is about, and scroll to it with `reveal`. */
  mark({ reveal = false } = {}) {
    const [view, id] = this.app.route;
    const only = this.app.only === null ? null : this.store.target(this.app.only);
    const current = { clusters: id === undefined ? null : Number(id), map: only }[view] ?? null;
    for (const link of this.list.querySelectorAll(".entry")) {
      const here = Number(link.dataset.cluster) === current && current !== null;
      if (here) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
      if (here && reveal) link.scrollIntoView({ block: "nearest" });
    }
  }

  #entry(group, largest) {
    const { app, store } = this;
    return h("a", {
      href: `#clusters/${group.id}`, class: "entry", data: { cluster: group.id, key: group.id },
      onclick: (event) => {
        if (!app.view?.focusCluster) return;
        event.preventDefault();
        app.view.focusCluster(group.id);
        this.mark();
      },
    },
    h("i", { class: "dot", style: { background: css(store.color(group.id)) } }),
    h("span", { class: "title" }, store.title(group.id)),
    h("span", { class: "muted label" }, group.majority !== null && !store.corrections.names[group.id] ? store.run.class_names[group.majority] : ""),
    h("span", { class: "number" }, count(group.members.length)),
    h("span", { class: "meter", title: group.purity === null ? "" : `purity ${percent(group.purity)}`, style: { width: `${(100 * group.members.length) / largest}%` } },
      h("span", { style: { width: `${100 * (group.purity ?? 1)}%`, background: css(store.color(group.id)) } })),
    group.purity !== null && h("span", { class: "purity muted" }, percent(group.purity, 0)));
  }
}
