"use strict";
// MLflow shows a report as a blob, in which a link to an anchor leads nowhere.
if (location.protocol === "blob:") {
  document.querySelectorAll("nav a").forEach((link) => {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      document.querySelector(link.hash).scrollIntoView();
    });
  });
}

// Filters and sorts the table of facts. Each fact is a tbody. Without this script the table is complete, in its order.
document.querySelectorAll(".facts").forEach((facts) => {
  const table = facts.querySelector("table");
  const form = facts.querySelector("form");
  const none = facts.querySelector(".none");
  const all = facts.querySelector(".all");
  const headings = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies].map((body) => ({
    body,
    words: body.textContent.toLowerCase(),
    failed: body.classList.contains("failed"),
    cells: [...body.rows[0].cells].map((cell) => cell.textContent.trim()),
  }));

  let most = 200; // A browser lays out so many rows at once without a wait.

  function filter() {
    const wanted = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const failures = form.elements.failures?.checked ?? false;
    let found = 0;
    for (const row of rows) {
      const matches = (row.failed || !failures) && wanted.every((word) => row.words.includes(word));
      found += matches;
      row.body.hidden = !matches || found > most;
    }
    form.elements.count.value = `${found.toLocaleString("en")} of ${rows.length.toLocaleString("en")} facts`;
    all.textContent = `Show all ${found.toLocaleString("en")}`;
    all.hidden = found <= most;
    none.hidden = found > 0;
  }

  function sort(column) {
    const heading = headings[column];
    const down = heading.getAttribute("aria-sort") === "ascending";
    const number = "number" in heading.dataset;
    const key = (row) => (number ? Number.parseFloat(row.cells[column]) : row.cells[column]);
    const keys = new Map(rows.map((row) => [row, key(row)]));
    const order = new Intl.Collator("en", { numeric: true });
    const compare = (one, other) => {
      if (!number) return order.compare(one, other);
      return Number.isNaN(one) || Number.isNaN(other) ? Number.isNaN(one) - Number.isNaN(other) : one - other;
    };
    rows.sort((one, other) => (down ? -1 : 1) * compare(keys.get(one), keys.get(other)));
    headings.forEach((one) => one.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    table.append(...rows.map((row) => row.body));
    filter();
  }

  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sort(column));
    heading.append(button);
  });
  all.addEventListener("click", () => {
    most = Infinity;
    filter();
  });
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();
});
