"""What several test files share: tiny models, faulty servers, hostile texts, planted files."""
