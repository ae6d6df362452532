// SPDX-License-Identifier: Apache-2.0
// Opens and closes sequences, moves about the table, chooses the colours.  Everything it
// shows is in the page already; without it every sequence can still be read (style.css).
"use strict";
(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const cells = all("button.cell");
  const closeAll = document.getElementById("close-all");
  const status = document.getElementById("opened");

  const card = (cell) => document.getElementById(cell.getAttribute("aria-controls"));
  const isOpen = (cell) => cell.getAttribute("aria-expanded") === "true";

  function show(cell, open) {
    cell.setAttribute("aria-expanded", String(open));
    card(cell).hidden = !open;
  }

  function tell() {
    const many = cells.filter(isOpen).length;
    status.textContent = many ? `${many} open, to be read side by side` : "None is open: press a cell of the table.";
    closeAll.hidden = many === 0;
  }

  function reveal(cell) {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    card(cell).scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
  }

  for (const cell of cells) {
    cell.addEventListener("click", () => {
      show(cell, !isOpen(cell));
      tell();
      if (isOpen(cell)) reveal(cell);
    });
  }

  for (const button of all("button.all")) {
    button.addEventListener("click", () => {
      const of = button.dataset.row === undefined ? "column" : "row";
      const wanted = cells.filter((cell) => cell.dataset[of] === button.dataset[of]);
      for (const cell of cells) show(cell, wanted.includes(cell));
      tell();
      if (wanted.length) reveal(wanted[0]);
    });
  }

  for (const button of all("button.close")) {
    button.addEventListener("click", () => {
      const cell = cells.find((one) => one.getAttribute("aria-controls") === button.dataset.card);
      show(cell, false);
      tell();
      cell.focus();
    });
  }

  closeAll.addEventListener("click", () => {
    for (const cell of cells) show(cell, false);
    tell();
    (cells[0] || document.body).focus();
  });

  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  document.addEventListener("keydown", (event) => {
    const from = event.target;
    const step = steps[event.key];
    if (!step || !from.matches("button.cell") || event.altKey || event.ctrlKey || event.metaKey) return;
    let row = Number(from.dataset.row);
    let column = Number(from.dataset.column);
    for (let tries = 0; tries < cells.length; tries++) {
      row += step[0];
      column += step[1];
      const next = cells.find((one) => Number(one.dataset.row) === row && Number(one.dataset.column) === column);
      if (next) {
        event.preventDefault();
        next.focus();
        return;
      }
    }
  });

  const scheme = document.getElementById("scheme");
  const schemes = ["system", "light", "dark"];
  scheme.hidden = false;
  scheme.addEventListener("click", () => {
    const said = scheme.querySelector("span");
    const next = schemes[(schemes.indexOf(said.textContent) + 1) % schemes.length];
    said.textContent = next;
    if (next === "system") delete document.documentElement.dataset.scheme;
    else document.documentElement.dataset.scheme = next;
  });

  document.documentElement.classList.add("scripted");
  tell();
})();
