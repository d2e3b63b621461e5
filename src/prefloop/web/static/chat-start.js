// Begins a conversation, or goes on with the one that is open.

import { pageData, Refused, request } from "./request.js";
import { toast } from "./toast.js";

const about = pageData("about");

for (const button of document.querySelectorAll("[data-start]")) {
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const { id } = await request("POST", "/api/v1/chats", { project: about.project, kind: button.dataset.start });
      location.href = `/chats/${id}`;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      button.disabled = false;
      toast(error.message, { kind: "bad", seconds: 10 });
    }
  });
}
