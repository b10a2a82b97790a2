
"use strict";
// Sorts and filters the tables of layers; without it they are read as they are.
for (const layers of document.querySelectorAll("details.layers")) {
  const table = layers.querySelector("table");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const text = rows.map((row) => row.textContent.toLowerCase());
  const controls = layers.querySelector(".controls");
  const search = controls.querySelector("[type=search]");
  const flagged = controls.querySelector("[type=checkbox]");
  const shown = controls.querySelector("output");
  const compare = new Intl.Collator("en", { numeric: true }).compare;

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach((row, place) => {
      const fits = words.every((word) => text[place].includes(word));
      row.hidden = !fits || (flagged.checked && !row.className);
      count += !row.hidden;
    });
    const [few, all] = [count, rows.length].map((number) => number.toLocaleString("en"));
    shown.value = `${few} of ${all} layers`;
  }

  function sort(column, header) {
    const descending = header.getAttribute("aria-sort") === "ascending";
    const key = (row) => row.cells[column].textContent.trim();
    const number = (value) => parseFloat(value.replaceAll(",", ""));
    const numeric = [0, 2, 3, 5].includes(column);
    const sorted = rows.map((row) => [numeric ? number(key(row)) : key(row), row]);
    const sign = descending ? -1 : 1;
    sorted.sort(([first], [second]) => {
      if (!numeric) return (first === "") - (second === "") || sign * compare(first, second);
      return isNaN(first) - isNaN(second) || sign * (first - second) || 0;
    });
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    body.append(...sorted.map(([, row]) => row));
  }

  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    button.addEventListener("click", () => sort(column, header));
    header.replaceChildren(button);
  });
  search.addEventListener("input", filter);
  flagged.addEventListener("change", filter);
  filter();
  controls.hidden = false;
}
