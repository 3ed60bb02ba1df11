/**
 * A grid of any number of images: only the rows in sight exist.
 *
 * It is one listbox: Tab reaches it, arrows move in it, Space selects. A plain move ends a selection,
 * so that none is forgotten out of sight; with Ctrl it stays. The picture under the cursor is named
 * by aria-activedescendant, because most others are not there.
 */

import { h } from "./dom.js";
import { paint } from "./tiles.js";

const GAP = 6;
const SPARE_ROWS = 3;

export class Grid {
  /**
   * app: told what the cursor reaches and how many are selected; label: what it lists; caption: image
   * -> text under it, or null for none; empty: what is said where there is no image.
   */
  constructor({ app, label, caption = null, size = 56, empty = "" }) {
    const { store } = app;
    Object.assign(this, { app, store, caption, size });
    this.numbers = [];
    this.selected = new Set();
    this.cursor = 0;
    this.anchor = 0;
    this.rows = new Map();
    this.spacer = h("div", { class: "spacer" });
    this.nothing = h("p", { class: "empty", hidden: true }, empty);
    this.element = h("div", {
      class: "grid", role: "listbox", tabindex: "0", "aria-label": label, "aria-multiselectable": "true",
      onkeydown: (event) => this.#key(event),
      onclick: (event) => this.#click(event),
      onscroll: () => this.#schedule(),
    }, this.nothing, this.spacer);
    this.resizing = new ResizeObserver(() => this.#layout());
    this.resizing.observe(this.element);
    this.repaint = () => { if (this.element.isConnected) this.#redraw(); else this.close(); };
    store.addEventListener("corrections", this.repaint);
  }

  close() {
    this.resizing.disconnect();
    this.store.removeEventListener("corrections", this.repaint);
    this.app.showSelected(0);
  }

  /** Replace the images. The cursor goes to the first, or stays where it is with `keep`. */
  show(numbers, { keep = false } = {}) {
    const here = this.numbers[this.cursor];
    this.numbers = Array.from(numbers);
    if (keep) {
      const there = new Set(this.numbers);
      for (const image of this.selected) if (!there.has(image)) this.selected.delete(image);
      const position = there.has(here) ? this.numbers.indexOf(here) : this.cursor;
      this.cursor = this.anchor = Math.max(0, Math.min(position, this.numbers.length - 1));
    } else {
      this.selected.clear();
      this.cursor = this.anchor = 0;
      this.element.scrollTop = 0;
    }
    this.nothing.hidden = this.numbers.length > 0;
    this.app.showSelected(this.selected.size);
    this.#layout();
  }

  /** The image under the cursor; undefined where there is none. */
  get current() { return this.numbers[this.cursor]; }

  get #rowHeight() { return this.size + GAP + (this.caption ? 17 : 0); }

  #layout() {
    const width = this.spacer.clientWidth;
    const before = this.columns;
    this.columns = Math.max(1, Math.floor((width + GAP) / (this.size + GAP)));
    this.spacer.style.height = `${Math.ceil(this.numbers.length / this.columns) * this.#rowHeight + GAP}px`;
    if (before !== this.columns) this.#reveal(); // else a new width would carry the cursor out of sight
    this.#redraw();
  }

  #redraw() {
    for (const row of this.rows.values()) row.remove();
    this.rows.clear();
    this.#draw();
  }

  #schedule() {
    this.frame ??= requestAnimationFrame(() => { this.frame = null; this.#draw(); });
  }

  #draw() {
    const { scrollTop, clientHeight } = this.element;
    const total = Math.ceil(this.numbers.length / this.columns);
    const first = Math.max(0, Math.floor(scrollTop / this.#rowHeight) - SPARE_ROWS);
    const last = Math.min(total, Math.ceil((scrollTop + clientHeight) / this.#rowHeight) + SPARE_ROWS);
    for (const [row, element] of this.rows) {
      if (row < first || row >= last) { element.remove(); this.rows.delete(row); }
    }
    const known = this.rows.size ? Math.min(...this.rows.keys()) : first;
    for (let row = Math.min(known, last) - 1; row >= first; row -= 1) this.#addRow(row);
    for (let row = known; row < last; row += 1) {
      if (!this.rows.has(row)) this.#addRow(row);
    }
    this.#point();
  }

  #addRow(row) {
    const element = h("div", { class: "row", role: "presentation", style: { top: `${row * this.#rowHeight + GAP}px` } });
    const end = Math.min(this.numbers.length, (row + 1) * this.columns);
    for (let position = row * this.columns; position < end; position += 1) element.append(this.#tile(position));
    // in order, for screen readers
    if (this.rows.size && row < Math.min(...this.rows.keys())) this.spacer.prepend(element);
    else this.spacer.append(element);
    this.rows.set(row, element);
  }

  #tile(position) {
    const { store } = this;
    const image = this.numbers[position];
    const [wrong, against] = [store.isWrong(image), store.isAgainstMajority(image)];
    const picture = h("span", { class: "picture" });
    paint(picture, store.run, this.numbers, position, this.size);
    const name = [`image ${image}`, store.title(store.cluster[image]), store.labelName(image), wrong && "marked wrong"];
    return h("div", {
      class: `tile${wrong ? " wrong" : ""}${against ? " against" : ""}`, role: "option", id: `tile-${position}`,
      "aria-label": name.filter(Boolean).join(", "), "aria-selected": String(this.selected.has(image)),
      title: name.filter(Boolean).slice(1).join(", "), "aria-setsize": this.numbers.length, "aria-posinset": position + 1, data: { position },
    }, picture, this.caption && h("small", {}, this.caption(image)));
  }

  #point() {
    this.element.querySelector(".cursor")?.classList.remove("cursor");
    const tile = document.getElementById(`tile-${this.cursor}`);
    tile?.classList.add("cursor");
    if (tile) this.element.setAttribute("aria-activedescendant", tile.id);
    else this.element.removeAttribute("aria-activedescendant");
  }

  #move(position, { extend = false, keep = false } = {}) {
    this.cursor = Math.max(0, Math.min(this.numbers.length - 1, position));
    if (extend) this.#selectRange();
    else {
      this.anchor = this.cursor;
      if (!keep) this.#clear();
    }
    this.#reveal();
    this.#draw();
    this.app.open(this.current);
  }

  #clear() {
    if (!this.selected.size) return;
    this.selected.clear();
    this.app.showSelected(0);
    this.#redraw();
  }

  /** Scroll until the cursor is in sight. */
  #reveal() {
    const top = Math.floor(this.cursor / this.columns) * this.#rowHeight;
    const bottom = top + this.#rowHeight + GAP;
    const { scrollTop, clientHeight } = this.element;
    if (top < scrollTop) this.element.scrollTop = top;
    else if (bottom > scrollTop + clientHeight) this.element.scrollTop = bottom - clientHeight;
  }

  #selectRange() {
    this.selected.clear();
    const [from, to] = [Math.min(this.anchor, this.cursor), Math.max(this.anchor, this.cursor)];
    for (let position = from; position <= to; position += 1) this.selected.add(this.numbers[position]);
    this.app.showSelected(this.selected.size);
    this.#redraw();
  }

  #toggle(position) {
    const image = this.numbers[position];
    if (!this.selected.delete(image)) this.selected.add(image);
    document.getElementById(`tile-${position}`)?.setAttribute("aria-selected", String(this.selected.has(image)));
    this.app.showSelected(this.selected.size);
  }

  #click(event) {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    const position = Number(tile.dataset.position);
    const keep = event.ctrlKey || event.metaKey;
    if (keep) this.#toggle(position);
    this.#move(position, { extend: event.shiftKey, keep });
  }

  #key(event) {
    const keep = event.ctrlKey || event.metaKey;
    const all = keep && event.key.toLowerCase() === "a";
    if (all) event.preventDefault(); // also of nothing, or the text of the page would be selected
    if (!this.numbers.length || event.altKey) return;
    const page = Math.max(1, Math.floor(this.element.clientHeight / this.#rowHeight)) * this.columns;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns, PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity };
    if (event.key in steps) this.#move(this.cursor + steps[event.key], { extend: event.shiftKey, keep });
    else if (all) { this.anchor = 0; this.cursor = this.numbers.length - 1; this.#selectRange(); }
    else if (event.key === " ") this.#toggle(this.cursor);
    else if (keep) return;
    else if (event.key === "Enter") this.#move(this.cursor, { keep: true });
    else if (event.key === "Escape" && this.selected.size) this.#clear();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}
