"""What the chat page (service/chat_ui.py) stands on, without Streamlit.

`client` asks the API and hands on what it answers, piece by piece; `conversation` is what has been
said and how it is put into words. `python -m service.chat_page` starts the page.
"""
