"use strict";
// A head sorts its table: first the largest numbers or the first letters, then the other way.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const value = (row, column) => {
    const cell = row.cells[column];
    return "sort" in cell.dataset ? Number(cell.dataset.sort) : cell.textContent.trim();
  };
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const numeric = head.classList.contains("number");
    const before = head.getAttribute("aria-sort");
    const down = before ? before === "ascending" : numeric;
    const order = (a, b) => {
      const [x, y] = [value(a, column), value(b, column)];
      if (numeric && typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
      const sign = typeof x === "number" ? x - y : x.localeCompare(y);
      return down ? -sign : sign;
    };
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...[...body.rows].sort(order));
  }));
}
for (const box of document.querySelectorAll("input[data-shows]")) {
  let next = box.closest("fieldset");
  while (!next.querySelector("table")) next = next.nextElementSibling;
  const table = next.querySelector("table");
  const show = () => table.classList.toggle("hide-" + box.dataset.shows, !box.checked);
  box.addEventListener("change", show);
  show();
}
for (const place of document.querySelectorAll("[data-chart]")) {
  const spec = JSON.parse(place.querySelector("script").textContent);
  vegaEmbed(place, spec, { actions: false, renderer: "svg" });
}
